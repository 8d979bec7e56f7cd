"""What several tests share: files, runs, servers, browsers."""
