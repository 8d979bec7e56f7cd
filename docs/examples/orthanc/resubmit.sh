#!/bin/sh
# Starts the failed transfers of an Orthanc again, once or every so many seconds: resubmit.sh http://127.0.0.1:8042 [SECONDS]
set -u
orthanc=$1
while :; do
    curl --silent --fail "$orthanc/jobs?expand" |
        jq --raw-output '.[] | select(.State == "Failure" and .Type == "DicomModalityStore") | .ID' |
        while read -r job; do
            curl --silent --fail --output /dev/null --data "" "$orthanc/jobs/$job/resubmit"
        done
    [ $# -gt 1 ] || exit 0
    sleep "$2"
done
