// The server's JSON interface and its pictures.

export class Refusal extends Error {  // the server answered, and said no
  constructor(status, reason, message) {
    super(message);
    this.status = status;
    this.reason = reason;
  }
}

export class Gone extends Error {}  // no server answers

async function send(path, options = {}, patience = 20000) {
  let response;
  try {
    response = await fetch("api/" + path, { ...options, signal: AbortSignal.timeout(patience) });
  } catch {
    throw new Gone("The server does not answer.");
  }
  if (response.ok) { return response; }
  let said;
  try {
    said = await response.json();
  } catch {
    throw new Gone("The server does not answer as expected.");  // a proxy in between, for instance
  }
  const message = said.message || String(said.detail || "the server refused this");
  throw new Refusal(response.status, said.reason || "refused", message.charAt(0).toUpperCase() + message.slice(1));
}

async function json(path, options) {
  const response = await send(path, options);
  try {
    return await response.json();
  } catch {
    throw new Gone("The connection broke.");
  }
}

const item = (id) => "items/" + encodeURIComponent(id);

export const status = () => json("status");
export const queue = (strategy, n, offset) => json(`queue?strategy=${strategy}&n=${n}&offset=${offset}`);
export const getItem = (id) => json(item(id));
export const training = () => json("train");
export const train = () => json("train", { method: "POST" });
export const changes = () => json("changes");

export function setLabel(id, { label = null, class: name = null, skipped = false }) {
  return json(item(id) + "/label", {
    method: "PUT",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ label, class: name, skipped }),
  });
}

// Pictures as object URLs; the last few stay, so that the next image is there at once.
export class Pictures {
  constructor(limit = 16) {
    this.limit = limit;
    this.urls = new Map();  // "id kind" -> promise of an object URL, least recently used first
  }

  get(id, kind) {
    const key = id + " " + kind;
    const found = this.urls.get(key) || this.load(id, kind, key);
    this.urls.delete(key);
    this.urls.set(key, found);
    while (this.urls.size > this.limit) { this.drop(this.urls.keys().next().value); }
    return found;
  }

  async load(id, kind, key) {
    try {
      const response = await send(`${item(id)}/${kind}.png`, {}, 60000);
      return URL.createObjectURL(await response.blob());
    } catch (error) {
      this.urls.delete(key);
      throw error;
    }
  }

  drop(key) {
    const url = this.urls.get(key);
    this.urls.delete(key);
    url.then(URL.revokeObjectURL, () => {});
  }

  clear() {
    for (const key of [...this.urls.keys()]) { this.drop(key); }
  }
}
