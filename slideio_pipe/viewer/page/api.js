// Requests to the viewer's own server. Addresses are relative, so that the page also works through a proxy.

export const base = new URL("./", document.baseURI.split(/[?#]/)[0]).href;

let onGone = () => {};
let gone = false;

// Call a function when the server no longer answers, with true, and when it answers again, with false.
export function whenGone(report) {
  onGone = report;
}

export function answered(yes) {
  if (gone === yes) {
    gone = !yes;
    onGone(gone);
  }
}

// Fetch an address; an answer that is no success becomes an Error with the server's message.
export async function ask(path, options = {}) {
  let reply;
  try {
    reply = await fetch(base + path, options);
  } catch (error) {
    if (error.name !== "AbortError") answered(false);
    throw error;
  }
  answered(true);
  if (reply.ok) return reply;
  let problem = `${reply.status} ${reply.statusText}`;
  try {
    problem = (await reply.json()).problem || problem;
  } catch { /* the answer has no message */ }
  throw Object.assign(new Error(problem), { status: reply.status });
}

export async function json(path, options) {
  return (await ask(path, options)).json();
}

export function send(path, value, options = {}) {
  return json(path, {
    method: "POST", body: JSON.stringify(value), headers: { "Content-Type": "application/json" }, ...options,
  });
}
