// The gateway's page: reads one topic of a room by EventSource, sends texts by fetch.
// Whatever comes from the room or the token is hostile: it reaches the page as text, never as HTML.

const MAX_ENTRIES = 500; // per view: an afternoon of captions must not fill the tab's memory
const REASONS = {
  drain: "The gateway is restarting.",
  token_expired: "The token has expired; connect with a new one.",
  room_closed: "The room was closed.",
  removed: "You were removed from the room.",
  left: "This participant left the room.",
  disconnected: "The gateway has lost LiveKit.",
  overloaded: "The gateway has as much to do as it can.",
  idle: "The gateway left the room, because nobody used it.",
  slow: "This page was too slow to take all events.",
};

const $ = (id) => document.getElementById(id);

function element(tag, className, text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

// ---- The token: read here for display only; it is the gateway that verifies it

let access = {}; // what the token field says

function readToken(given) {
  const token = given.trim().replace(/^bearer\s+/i, "");
  if (!token) return { token, missing: true };
  try {
    const { sub: identity, exp, video } = JSON.parse(base64url(token.split(".")[1]));
    const room = video?.room;
    if (typeof room !== "string" || !room) return { token, problem: "The token names no room." };
    if (typeof identity !== "string" || !identity) return { token, problem: "The token names no identity." };
    const expires = moment(exp * 1000);
    const problem = expires < Date.now() ? `The token has expired (${short(expires)}); make a new one.` : "";
    return { token, room, identity, expires, problem };
  } catch {
    return { token, problem: "This is not a LiveKit access token: one has three parts, joined by dots." };
  }
}

function base64url(part) {
  const binary = atob(part.replaceAll("-", "+").replaceAll("_", "/"));
  const bytes = Uint8Array.from(binary, (character) => character.charCodeAt(0));
  return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
}

// Tokens and senders may claim any number; one that is no time is shown as none.
function moment(milliseconds) {
  const date = new Date(milliseconds);
  return Number.isNaN(date.getTime()) ? undefined : date;
}

function short(date) {
  const today = date.toDateString() === new Date().toDateString();
  return date.toLocaleString([], { dateStyle: today ? undefined : "medium", timeStyle: "short" });
}

function showToken() {
  access = readToken($("token").value);
  const { missing, problem, room, identity, expires } = access;
  $("who").textContent = room ? `Room ${room}, as ${identity}${expires ? `, until ${short(expires)}` : ""}`
    : missing ? "No token yet" : "No usable token";
  $("token-problem").textContent = problem ?? "";
  $("token-problem").hidden = !problem;
  $("token-help").hidden = !missing && !problem;
  showCurl();
}

function takeFragment() {
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (token === null) return;
  stop();
  setState("closed");
  $("token").value = token;
  showToken();
  $("access").open = Boolean(access.missing || access.problem);
  if (!$("access").open) connect();
}

// ---- Addresses: relative to the page, so that the gateway may be mounted below a path

// encodeURIComponent leaves the apostrophe, which would end the quotes of the curl commands.
const segment = (text) => encodeURIComponent(text.toWellFormed?.() ?? text).replaceAll("'", "%27");
const eventsPath = (room, topic) => `rooms/${segment(room)}/topics/${segment(topic)}/events`;

function textPath(room, topic, to) {
  return `rooms/${segment(room)}/text?topic=${segment(topic)}${to.map((name) => `&to=${segment(name)}`).join("")}`;
}

function eventsUrl() {
  // A new EventSource knows no Last-Event-ID; with ours nothing is missed and nothing comes twice.
  const start = position ? `last_event_id=${segment(position)}` : "replay=all";
  return `${eventsPath(target.room, target.topic)}?${start}&access_token=${segment(target.token)}`;
}

const destinations = () => $("to").value.split(",").map((name) => name.trim()).filter(Boolean);

function showCurl() {
  const { token, room = "ROOM" } = access;
  const topic = $("topic").value;
  const curl = `curl -H 'Authorization: Bearer ${token.replaceAll("'", "") || "TOKEN"}'`;
  const quoted = (path) => `'${new URL(path, location.href).href}'`;
  $("curl-read").textContent = `${curl} -N ${quoted(eventsPath(room, topic))}`;
  $("curl-send").textContent = `${curl} -H 'Content-Type: text/plain' --data-binary 'Hello' `
    + quoted(textPath(room, topic, destinations()));
}

// ---- Reading: connecting, staying connected, saying why not

let target = null; // what was connected to last: token, room, identity, topic
let source = null; // the EventSource while there is one
let position = ""; // the last id seen, to go on from
let retrying; // a timer
let question; // aborts asking why it failed
let coming = ""; // why the gateway ended what the browser opens again by itself

function connect() {
  const { token, room, identity } = access;
  if (!room) {
    $("access").open = true;
    $("token").focus();
    return;
  }
  const next = { token, room, identity, topic: $("topic").value };
  if (["room", "identity", "topic"].some((part) => next[part] !== target?.[part])) clear();
  target = next;
  open();
}

function open() {
  stop();
  setState("connecting");
  source = new EventSource(eventsUrl());
  for (const type of Object.keys(HANDLERS)) source.addEventListener(type, receive);
  source.addEventListener("error", onFailure);
}

function stop() {
  clearTimeout(retrying);
  question?.abort();
  source?.close();
  source = null;
}

function onFailure() {
  if (source.readyState !== EventSource.CLOSED) {
    setState("reconnecting", `${coming || "The connection was lost."} Coming back by itself.`);
    return;
  }
  // Any status but 200 ends an EventSource, which cannot say what it was: ask once more by fetch.
  stop();
  setState("connecting", "The gateway refused; asking why.");
  question = new AbortController();
  explain(question);
}

async function explain(asking) {
  const headers = { Accept: "text/event-stream" };
  let answer, problem;
  try {
    answer = await fetch(eventsUrl(), { headers, cache: "no-store", signal: asking.signal });
    problem = answer.ok ? {} : await answer.json().catch(() => ({}));
  } catch {
    if (!asking.signal.aborted) retryIn(2, "The gateway cannot be reached.");
    return;
  }
  if (asking.signal.aborted) return;
  asking.abort(); // an answer of 200 has an endless body
  const said = `${answer.status}: ${problem.detail ?? answer.statusText}`;
  if (answer.status === 204) end("The gateway has ended this for good: the room is closed, or you left it or were removed.");
  else if (answer.ok) retryIn(2, "The connection was refused, and would be taken now.");
  else if ([429, 502, 503, 504].includes(answer.status)) retryIn(Number(answer.headers.get("Retry-After")) || 5, said);
  else setState("failed", said, true);
}

function retryIn(seconds, why) {
  setState("reconnecting", `${why} Trying again in ${seconds} s.`, true);
  retrying = setTimeout(open, seconds * 1000);
}

// Over for good. Connecting again is a new beginning: with the old position it would be refused.
function end(why) {
  stop();
  position = "";
  setState("failed", why, true);
}

function setState(state, notice = "", again = false) {
  const active = ["connecting", "live", "reconnecting"].includes(state);
  $("state").textContent = { closed: "not connected", failed: "closed" }[state] ?? state;
  $("state").dataset.state = $("notice").dataset.state = state;
  $("notice-text").textContent = notice;
  $("notice").hidden = !notice;
  $("again").hidden = !again;
  $("connect").textContent = active ? "Disconnect" : "Connect";
  $("token").readOnly = $("topic").readOnly = active;
  $("connect").dataset.active = active;
  if (state === "live") $("access").open = false;
}

function toggle() {
  if (!$("topic").readOnly) return connect();
  stop();
  setState("closed");
}

function receive(message) {
  const event = JSON.parse(message.data);
  showEvent(message, message.lastEventId !== position);
  position = message.lastEventId || position || event.position;
  HANDLERS[event.type](event);
}

const HANDLERS = {
  "gateway.opened"() {
    coming = "";
    setState("live");
  },
  "gateway.gap"({ reason, from, to }) {
    // What became of texts that were being written is not known; those still open come again.
    for (const text of texts.values()) if (text.state === "writing") mark(text, "incomplete", "its end may be missing");
    append($("texts"), element("li", "gap", `Something may be missing here (${reason}), from ${from} to ${to}.`));
  },
  "gateway.closing"({ reason, reconnect }) {
    const why = REASONS[reason] ?? `The gateway ended the event stream (${reason}).`;
    if (reconnect) coming = why;
    else end(why); // the browser would come back by itself
  },
  "room.reconnecting"() {
    setState("reconnecting", "The gateway has lost LiveKit, and is coming back by itself.");
  },
  "room.reconnected"() {
    setState("live");
    say("", "LiveKit is back.");
  },
  "stream.opened"(event) {
    const known = texts.get(keyOf(event));
    // After a gap an open stream is told again from its beginning: its bubble goes on.
    const again = known && known.state !== "complete" && known.timestamp === event.timestamp;
    mark(again ? known : addText(event), "writing");
  },
  "stream.chunk"(event) {
    const text = texts.get(keyOf(event)) ?? addText(event);
    if (event.index < text.next) return;
    text.hole ||= event.index > text.next;
    text.next = event.index + 1;
    text.body.append(event.text);
    mark(text, "writing");
  },
  "stream.closed"(event) {
    const text = texts.get(keyOf(event)) ?? addText(event);
    text.hole ||= event.chunks > text.next;
    text.attributes.textContent = pairs(event.attributes);
    mark(text, event.complete && !text.hole ? "complete" : "incomplete", event.reason);
  },
};

// ---- Texts: each stream is folded into one bubble

const texts = new Map();
const keyOf = (event) => JSON.stringify([event.participant_identity, event.stream_id]);
const pairs = (attributes) => Object.entries(attributes ?? {}).map(([name, value]) => `${name}=${value}`).join(" · ");

function addText(event) {
  const item = element("li", event.local ? "text own" : "text");
  const [head, body, foot] = ["head", "body", "foot"].map((part) => element("div", part));
  const note = element("span", "note");
  const attributes = element("span", "attributes", pairs(event.attributes));
  const to = event.destination_identities ?? [];
  head.append(element("b", "", event.participant_identity + (event.local ? " (you)" : "")));
  if (to.length) head.append(element("span", "", `to ${to.join(", ")}`));
  head.append(element("time", "", moment(event.timestamp)?.toLocaleTimeString()));
  body.dir = "auto";
  foot.append(element("span", "", event.topic), note, attributes);
  item.append(head, body, foot);
  const text = { item, body, note, attributes, timestamp: event.timestamp, next: 0, hole: false };
  texts.set(keyOf(event), text);
  if (texts.size > MAX_ENTRIES) texts.delete(texts.keys().next().value);
  append($("texts"), item);
  return text;
}

function mark(text, state, reason) {
  const notes = [state === "writing" ? "still being written" : state, reason, text.hole && "a part of it is missing"];
  text.state = text.item.dataset.state = state;
  text.note.textContent = notes.filter(Boolean).join(", ");
  follow($("texts"));
}

// ---- The two lists follow their end, unless somebody has scrolled up to read

const lists = [$("texts"), $("events")];

function append(list, item) {
  list.append(item);
  if (list.childElementCount > MAX_ENTRIES) list.firstElementChild.remove();
  $("empty").hidden = true;
  follow(list);
}

// Once per frame: a scroll per chunk would lay the page out for each.
function follow(list) {
  if (list.dataset.reading || list.dataset.follows) return;
  list.dataset.follows = "soon";
  requestAnimationFrame(() => {
    list.scrollTop = list.scrollHeight;
    list.dataset.follows = "";
  });
}

function onScroll({ target: list }) {
  const below = list.scrollHeight - list.clientHeight - list.scrollTop;
  if (!list.dataset.follows) list.dataset.reading = below < 40 ? "" : "yes";
}

function showEvent({ type, data, lastEventId }, numbered) {
  const item = element("li", "event");
  // The browser repeats the last id for events that have none.
  item.append(element("b", "", type), element("span", "id", numbered ? lastEventId : ""), element("code", "", data));
  append($("events"), item);
}

function clear() {
  position = "";
  texts.clear();
  for (const list of lists) list.replaceChildren();
  $("empty").hidden = false;
}

// ---- Sending

async function send() {
  const text = $("text").value;
  const to = destinations();
  if (!text || $("send").disabled) return;
  if (!access.room) return say("failed", "Sending needs a token.");
  $("send").disabled = true;
  say("", "Sending…");
  try {
    const headers = { Authorization: `Bearer ${access.token}`, "Content-Type": "text/plain" };
    const path = textPath(access.room, $("topic").value, to);
    const answer = await fetch(path, { method: "POST", headers, body: text });
    const told = await answer.json().catch(() => ({}));
    if (!answer.ok) return say("failed", `Not sent. ${answer.status}: ${told.detail ?? answer.statusText}`);
    if ($("text").value === text) $("text").value = ""; // what was typed meanwhile stays
    if ($("state").dataset.state === "failed") say("alone", "Accepted, into a room that is not shown here: connect to see it.");
    else if (told.listeners) say("", `Accepted; ${told.listeners} ${told.listeners === 1 ? "listener" : "listeners"}.`);
    else say("alone", `Accepted, but ${to.length ? "none of those addressed" : "nobody else"} is in the room yet.`);
  } catch {
    say("failed", "The gateway cannot be reached; whether the text was sent is not known.");
  } finally {
    $("send").disabled = false;
  }
}

function say(state, text) {
  $("answer").dataset.state = state;
  $("answer").textContent = text;
}

function onKey(event) {
  // An Enter that ends an input method's composition is not meant for us.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
}

async function copy({ currentTarget: button }) {
  const code = $(button.value);
  getSelection().selectAllChildren(code);
  // Without https there is no clipboard: then it is selected, at least.
  await navigator.clipboard?.writeText(code.textContent);
}

// ---- Wiring

for (const [form, action] of [[$("connection"), toggle], [$("composer"), send]]) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    action();
  });
}
for (const list of lists) {
  list.addEventListener("scroll", onScroll, { passive: true });
  new ResizeObserver(() => follow(list)).observe(list);
}
$("views").addEventListener("change", ({ target }) => {
  for (const list of lists) list.hidden = list.id !== target.value;
});
$("again").addEventListener("click", connect);
$("token").addEventListener("input", showToken);
for (const id of ["topic", "to"]) $(id).addEventListener("input", showCurl);
$("text").addEventListener("keydown", onKey);
for (const id of ["copy-read", "copy-send"]) $(id).addEventListener("click", copy);
window.addEventListener("hashchange", takeFragment);
showToken();
takeFragment();
