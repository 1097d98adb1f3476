"use strict";

// The token is in this variable alone: not in a cookie, not in storage, not in a URL.
let token = "";
// The number of the last request for a view. An answer to an earlier one is thrown away.
let asked = 0;
// The text of the view that is shown, and its route. The same text is not shown again, so that nothing moves and nothing is read aloud.
let shown = "";
let shownRoute = "";
// The id of the last event, and what ends the stream of events.
let last = "";
let stream = null;

// Whether a view is requested now, and whether the mesh has changed in the meantime.
let waiting = false;
let again = false;
// The route of the view that the token does not permit. It is not requested again, since each refusal is an event of the server.
let barred = "";

const CHANGES = "/page/view/changes";
const REFRESH_MS = 5000;
const RETRY_MS = 1000;
const MAX_RETRY_MS = 30000;
const ANSWER_MS = 20000;
// A server ends a stream of events within a minute. One that lasts longer has lost its connection.
const STREAM_MS = 70000;
const TYPING_MS = 250;

const at = (id) => document.getElementById(id);
const links = () => [...at("sections").querySelectorAll("a")];
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
// Many pages that were refused at the same time do not come back at the same time.
const scattered = (ms) => ms * (0.5 + Math.random());

// The part of the address after `#`: the name of a view, or `why/` and the name of a node.
function route() {
  const hash = location.hash.slice(1);
  const names = links().map((link) => link.hash.slice(1));
  return names.includes(hash) || /^why\/[a-z0-9-]+$/.test(hash) ? hash : names[0];
}

function section() {
  return links().find((link) => link.hash === "#" + route());
}

function pathOfView() {
  const link = section();
  // A browser would take a segment of dots out of the path.
  const filter = at("filter").value.trim().replace(/^\.+$/, "");
  const isFiltered = link !== undefined && "filtered" in link.dataset && filter !== "";
  return "/page/view/" + route() + (isFiltered ? "/" + encodeURIComponent(filter) : "");
}

function ask(path, headers, signal) {
  return fetch(path, {
    headers: { Authorization: "Bearer " + token, ...headers },
    cache: "no-store",
    credentials: "omit",
    redirect: "error",
    signal,
  });
}

async function reasonOf(response) {
  const problem = await response.json().catch(() => null);
  const detail = problem && typeof problem.detail === "string" ? problem.detail : "";
  return detail || "the server answered with the status " + response.status;
}

// Shows the view of the route. `isOpened` says that the person opened it, so the focus goes there.
async function show(isOpened) {
  if (token === "") return;
  const number = ++asked;
  waiting = true;
  barred = "";
  mark();
  try {
    await showAs(number, isOpened);
  } finally {
    if (number === asked) {
      waiting = false;
      if (again) setTimeout(refresh, TYPING_MS);
      again = false;
    }
  }
}

// Shows the view again, if somebody can see it. A view that is on its way arrives first, so that many changes do not hold the page up.
function refresh() {
  if (document.visibilityState !== "visible") return;
  if (waiting) again = true;
  else if (barred !== route()) show(false);
}

async function showAs(number, isOpened) {
  let response, text;
  try {
    response = await ask(pathOfView(), {}, AbortSignal.timeout(ANSWER_MS));
    text = response.ok ? await response.text() : await reasonOf(response);
  } catch {
    if (number === asked) fail("This server does not answer. The page tries again.");
    return;
  }
  if (number !== asked || token === "") return;
  if (response.status === 401) {
    forget();
    fail(text);
    return;
  }
  if (!response.ok) {
    // While the server is busy for a moment, the view stays on the screen.
    if (response.status === 429) setTimeout(refresh, scattered(RETRY_MS));
    else place("");
    if (response.status === 403) barred = route();
    fail(text);
    return;
  }
  fail("");
  place(text);
  if (isOpened) at("title")?.focus();
}

// Puts a view on the screen. A parsed document runs no scripts, and the policy of this page permits none in it.
function place(text) {
  const view = at("view");
  view.hidden = text === "";
  if (text === shown && shownRoute === route()) return;
  shown = text;
  shownRoute = route();
  const parsed = new DOMParser().parseFromString(text, "text/html");
  const focused = view.contains(document.activeElement) ? document.activeElement : null;
  const target = focused?.getAttribute("href");
  view.replaceChildren(...parsed.body.childNodes);
  if (target) view.querySelector('a[href="' + CSS.escape(target) + '"]')?.focus();
  else if (focused) at("title")?.focus();
}

function fail(text) {
  const failure = at("failure");
  if (failure.textContent !== text) failure.textContent = text;
}

function tell(text) {
  const state = at("state");
  if (state.textContent !== text) state.textContent = text;
}

// Marks the section of the route in the list.
function mark() {
  const current = section();
  for (const link of links()) {
    if (link === current) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  at("search").hidden = !(current && "filtered" in current.dataset);
  document.title = (current ? current.textContent + " · " : "") + document.querySelector("h1").textContent;
}

// Follows the events: each one shows the view again. A server ends the stream now and then, and it is opened again at once.
async function follow() {
  const own = { abort: () => {} };
  stream = own;
  let failures = 0;
  while (token !== "" && stream === own) {
    const begun = Date.now();
    const attempt = new AbortController();
    own.abort = () => attempt.abort();
    const timer = setTimeout(own.abort, STREAM_MS);
    try {
      const headers = last === "" ? {} : { "Last-Event-ID": last };
      const response = await ask(CHANGES, headers, attempt.signal);
      if (response.status === 401 || response.status === 403) {
        tell("Refreshed every 5 seconds: the token does not permit the events (status:read).");
        return;
      }
      if (response.ok) {
        tell("Connected");
        await read(response.body);
      } else if (response.status === 429) {
        tell("Refreshed every 5 seconds: too many pages are open.");
      } else {
        tell("Not connected");
      }
    } catch {
      if (stream === own) tell("Not connected");
    } finally {
      clearTimeout(timer);
    }
    failures = Date.now() - begun > RETRY_MS ? 0 : failures + 1;
    if (failures > 0) await pause(scattered(Math.min(RETRY_MS * 2 ** (failures - 1), MAX_RETRY_MS)));
  }
}

async function read(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    const ids = lines.filter((line) => line.startsWith("id: "));
    if (ids.length > 0) {
      last = ids[ids.length - 1].slice(4);
      refresh();
    }
  }
}

function enter(text) {
  token = text;
  at("token").value = "";
  at("enter").hidden = true;
  at("controls").hidden = false;
  at("sections").hidden = false;
  follow();
  show(true);
}

function forget() {
  token = "";
  asked += 1;
  waiting = false;
  again = false;
  last = "";
  stream?.abort();
  stream = null;
  shown = "";
  fail("");
  at("view").replaceChildren();
  at("view").hidden = true;
  at("controls").hidden = true;
  at("sections").hidden = true;
  at("enter").hidden = false;
  at("token").focus();
}

at("enter").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = at("token").value.trim();
  // A header has no other characters, and neither has a token.
  if (/^[\w-]+$/.test(text)) enter(text);
  else fail("This is no API token. It begins with mesha1_ and is one word.");
});
at("forget").addEventListener("click", forget);
at("skip").addEventListener("click", (event) => {
  event.preventDefault();
  (at("title") ?? at("token")).focus();
});

let typing = 0;
at("filter").addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(() => show(false), TYPING_MS);
});

window.addEventListener("hashchange", () => show(true));
document.addEventListener("visibilitychange", refresh);
// A browser may keep a page that was left, to show it again. It keeps none with a token.
window.addEventListener("pagehide", forget);
// Round trips and graphs change without an event.
setInterval(refresh, REFRESH_MS);
