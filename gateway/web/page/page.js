// The gateway's page: reads one topic of a room by EventSource, or a conversation with the room's agent and
// what that does; sends texts by fetch.
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
const CHAT = "lk.chat"; // what people write, to agents too
const ANSWERS = "lk.transcription"; // what agents say
const AGENT_SECONDS = 10; // for an agent that is on its way, before a text is sent

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
  const given = new URLSearchParams(location.hash.slice(1));
  const token = given.get("token");
  if (token === null) return;
  stop();
  setState("closed");
  $("token").value = token;
  $("agent").checked = given.get("agent") === "1";
  showToken();
  $("access").open = Boolean(access.missing || access.problem);
  if (!$("access").open) connect();
}

// ---- Addresses: relative to the page, so that the gateway may be mounted below a path

// encodeURIComponent leaves the apostrophe, which would end the quotes of the curl commands.
const segment = (text) => encodeURIComponent(text.toWellFormed?.() ?? text).replaceAll("'", "%27");

function eventsPath({ room, topic, agent }) {
  if (!agent) return `rooms/${segment(room)}/topics/${segment(topic)}/events`;
  const topics = [...new Set([topic, ANSWERS])].map((name) => `topic=${segment(name)}&`).join("");
  return `rooms/${segment(room)}/events?${topics}agent=1&participants=1`;
}

function textPath(room, topic, to) {
  const wait = $("agent").checked && topic === CHAT && !to.length ? `&agent_timeout=${AGENT_SECONDS}` : "";
  return `rooms/${segment(room)}/text?topic=${segment(topic)}${to.map((name) => `&to=${segment(name)}`).join("")}${wait}`;
}

function eventsUrl() {
  // A new EventSource knows no Last-Event-ID; with ours nothing is missed and nothing comes twice.
  const start = position ? `last_event_id=${segment(position)}` : "replay=all";
  return `${eventsPath(target)}${target.agent ? "&" : "?"}${start}&access_token=${segment(target.token)}`;
}

const destinations = () => $("to").value.split(",").map((name) => name.trim()).filter(Boolean);

function showCurl() {
  const { token, room = "ROOM" } = access;
  const topic = $("topic").value;
  const curl = `curl -H 'Authorization: Bearer ${token.replaceAll("'", "") || "TOKEN"}'`;
  const quoted = (path) => `'${new URL(path, location.href).href}'`;
  const agent = $("agent").checked;
  $("curl-read").textContent = `${curl} -N ${quoted(eventsPath({ room, topic, agent }))}`;
  $("curl-send").textContent = `${curl} -H 'Content-Type: text/plain' --data-binary 'Hello' `
    + quoted(textPath(room, topic, destinations()));
}

// ---- Reading: connecting, staying connected, saying why not

let target = null; // what was connected to last: token, room, identity, topic, agent (also what agents do)
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
  const next = { token, room, identity, topic: $("topic").value, agent: $("agent").checked };
  if (["room", "identity", "topic", "agent"].some((part) => next[part] !== target?.[part])) clear();
  target = next;
  document.body.classList.toggle("with-agent", target.agent);
  open();
}

function open() {
  stop();
  setState("connecting");
  source = new EventSource(eventsUrl());
  for (const type of [...Object.keys(HANDLERS), ...SHOWN_ONLY]) source.addEventListener(type, receive);
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
  HANDLERS[event.type]?.(event);
}

const HANDLERS = {
  "gateway.opened"() {
    coming = "";
    setState("live");
    lookForAgents();
  },
  "gateway.gap"({ reason, from, to }) {
    // What became of texts that were being written is not known; those still open come again.
    for (const text of texts.values()) if (text.state === "writing") mark(text, "incomplete", "its end may be missing");
    loseTools();
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
    const known = texts.get(keyOf(event)) ?? rewritten(event);
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
  "participant.connected"({ participant_identity, kind, attributes }) {
    if (kind === "agent") showAgent(participant_identity, attributes?.["lk.agent.state"]);
  },
  "participant.disconnected"({ participant_identity, reason }) {
    if (agents.has(participant_identity)) endAgent(participant_identity, "left the room", reason);
  },
  "agent.agent_state_changed"({ participant_identity, new_state }) {
    showAgent(participant_identity, new_state);
  },
  "agent.user_state_changed"({ participant_identity, new_state }) {
    showAgent(participant_identity, undefined, new_state);
  },
  "agent.close"({ participant_identity, reason, error, created_at, inferred }) {
    const how = inferred ? "left the room" : "session closed";
    endAgent(participant_identity, how, reason);
    if (error) showError(created_at, "bad", how, reason, error.message);
    append($("texts"), element("li", "gap failure", `The agent: ${[how, reason].filter(Boolean).join(", ")}.`));
  },
  "agent.tool_execution_updated"({ participant_identity, update }) {
    showTool(participant_identity, update ?? {});
  },
  "agent.session_usage_updated"({ participant_identity, usage }) {
    for (const one of usage?.model_usage ?? []) showUsage(participant_identity, one);
  },
  "agent.availability_changed"(event) {
    const { participant_identity, available, model, provider, created_at } = event;
    tell(modelOf(participant_identity, event), available ? "good" : "bad", available ? "available" : "out of order");
    showError(created_at, available ? "good" : "busy", `${model} (${provider})`, available ? "available again" : "out of order");
  },
  "agent.error"({ error, source, created_at }) {
    const of = source?.model ? `${source.model} (${source.provider})` : error?.label;
    const what = [error?.type ?? "error", of].filter(Boolean).join(" of ");
    const note = error?.recoverable ? "recoverable" : "not recoverable";
    showError(created_at, error?.recoverable ? "busy" : "bad", what, note, error?.message);
    if (error?.recoverable) return;
    append($("texts"), element("li", "gap failure", `The agent could not answer: ${error?.message ?? what}`));
  },
};

// No more is made of them than an entry among the events.
const SHOWN_ONLY = [
  "participant.attributes_changed",
  "agent.agent_false_interruption",
  "agent.amd_prediction",
  "agent.conversation_item_added",
  "agent.eot_prediction",
  "agent.function_tools_executed",
  "agent.function_tools_started",
  "agent.metrics_collected",
  "agent.overlapping_speech",
  "agent.speech_created",
  "agent.speech_finished",
  "agent.user_input_transcribed",
  "agent.user_transcription_timeout",
];

// ---- Texts: each stream is folded into one bubble

const texts = new Map();
const segments = new Map(); // of transcriptions: while somebody speaks, each is told again and again
const keyOf = (event) => JSON.stringify([event.participant_identity, event.stream_id]);
// Without LiveKit's own, which are between programs.
const pairs = (attributes) => Object.entries(attributes ?? {}).filter(([name]) => !name.startsWith("lk."))
  .map(([name, value]) => `${name}=${value}`).join(" · ");

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
  remember(texts, keyOf(event), text);
  const segment = segmentOf(event);
  if (segment) remember(segments, segment, text);
  append($("texts"), item);
  return text;
}

function remember(map, key, value) {
  map.set(key, value);
  if (map.size > MAX_ENTRIES) map.delete(map.keys().next().value);
}

function segmentOf({ participant_identity, attributes }) {
  const id = attributes?.["lk.segment_id"];
  return id && JSON.stringify([participant_identity, id]);
}

// The bubble of what this stream says anew, empty again.
function rewritten(event) {
  const text = segments.get(segmentOf(event));
  if (!text) return undefined;
  text.body.textContent = "";
  Object.assign(text, { next: 0, hole: false, state: "writing", timestamp: event.timestamp });
  remember(texts, keyOf(event), text);
  return text;
}

function mark(text, state, reason) {
  const notes = [state === "writing" ? "still being written" : state, reason, text.hole && "a part of it is missing"];
  text.state = text.item.dataset.state = state;
  text.note.textContent = notes.filter(Boolean).join(", ");
  follow($("texts"));
}

// ---- What agents do: who they are, their models, tools and errors; of the last two the newest is on top

const agents = new Map(); // by identity
const models = new Map(); // by agent, provider and name
const tools = new Map(); // by agent and call

// An entry of the panel: a line with a note at its end, and what is under it.
function doing(title, code = "") {
  const item = element("li", "doing");
  const line = element("div", "line");
  const what = element("b", "", title);
  const note = element("span", "note");
  const under = element("div", "under");
  if (code) what.append(" ", element("code", "", code));
  line.append(what, note);
  item.append(line, under);
  return { item, note, under };
}

function tell(entry, state, note) {
  entry.state = entry.item.dataset.state = state;
  entry.note.textContent = note;
}

function keep(map, key, entry) {
  map.set(key, entry);
  if (map.size <= MAX_ENTRIES) return entry;
  const [oldest, { item }] = map.entries().next().value;
  map.delete(oldest);
  item.remove();
  return entry;
}

let chosen = false; // whether somebody has said by hand that agents are to be shown, or not

// Which agents are in the room already is not told by events.
async function lookForAgents() {
  if (!target.agent && (chosen || target.topic !== CHAT)) return;
  const asked = target;
  const headers = { Authorization: `Bearer ${target.token}` };
  const answer = await fetch(`rooms/${segment(target.room)}/agent`, { headers }).catch(() => null);
  const there = answer?.ok ? (await answer.json()).agents : [];
  if (target !== asked || $("state").dataset.state !== "live") return;
  if (!target.agent && there.length) {
    $("agent").checked = true;
    showCurl();
    connect();
  } else for (const agent of there) {
    if (!agents.has(agent.participant_identity)) showKnown(agent);
  }
}

function showAgent(identity, state, userState) {
  if (!agents.has(identity)) {
    for (const [other, { ended, item }] of agents) {
      if (!ended) continue;
      item.remove();
      agents.delete(other);
    }
    $("agents").append(keep(agents, identity, doing(identity)).item);
  }
  const agent = agents.get(identity);
  if (agent.ended) return; // what it does while it closes
  agent.agentState = state ?? agent.agentState ?? "is here";
  agent.under.textContent = userState ? `user ${userState}` : agent.under.textContent;
  tell(agent, ["initializing", "thinking"].includes(agent.agentState) ? "busy" : "good", agent.agentState);
  showAgentState(agent.agentState);
}

function showKnown({ participant_identity, state, user_state, usage, close }) {
  showAgent(participant_identity, state ?? undefined, user_state);
  for (const one of usage?.model_usage ?? []) showUsage(participant_identity, one);
  if (close) endAgent(participant_identity, "session closed", close.reason);
}

function endAgent(identity, how, reason) {
  showAgent(identity);
  const agent = agents.get(identity);
  loseTools(identity);
  if (agent.ended) return; // it closes, then it leaves
  agent.ended = true;
  tell(agent, "bad", [how, reason].filter(Boolean).join(": "));
  showAgentState("ended", how);
}

function showAgentState(state, text = state) {
  $("agent-state").dataset.state = state;
  $("agent-state").replaceChildren(element("span", "prefix", "agent: "), text);
}

function showTool(identity, { type, function_call: call, call_id, message, status }) {
  const key = JSON.stringify([identity, call?.call_id ?? call_id]);
  if (type === "tool_call_started") {
    const tool = keep(tools, key, doing(call?.name ?? "", call?.arguments ?? ""));
    tell(Object.assign(tool, { identity }), "busy", "running");
    $("tools").prepend(tool.item);
    return;
  }
  const tool = tools.get(key);
  if (!tool || !["tool_call_updated", "tool_call_ended"].includes(type)) return;
  tool.under.append(element("div", "result", message ?? ""));
  if (type === "tool_call_ended") tell(tool, status === "done" ? "good" : "bad", { error: "failed" }[status] ?? status ?? "ended");
}

// What became of tools that were running is not known.
function loseTools(identity) {
  for (const tool of tools.values()) {
    if (tool.state === "busy" && (!identity || tool.identity === identity)) tell(tool, "", "not known to have ended");
  }
}

function modelOf(identity, { provider, model }) {
  const key = JSON.stringify([identity, provider, model]);
  const known = models.get(key);
  if (known) return known;
  const entry = keep(models, key, doing(model || "unnamed", provider ?? ""));
  $("models").append(entry.item);
  return entry;
}

function showUsage(identity, { type, provider, model, ...counts }) {
  const used = Object.entries(counts).filter(([, count]) => typeof count === "number" && count);
  const told = used.map(([name, count]) => `${Number(count.toFixed(1)).toLocaleString()} ${name.replaceAll("_", " ")}`);
  modelOf(identity, { provider, model }).under.textContent = told.join(" · ");
}

function showError(at, state, title, note, text) {
  const entry = doing(title, moment(at * 1000)?.toLocaleTimeString());
  tell(entry, state, note);
  entry.under.textContent = text ?? "";
  $("errors").prepend(entry.item);
  if ($("errors").childElementCount > MAX_ENTRIES) $("errors").lastElementChild.remove();
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
  for (const map of [texts, segments, agents, models, tools]) map.clear();
  for (const list of [...lists, ...["agents", "models", "tools", "errors"].map($)]) list.replaceChildren();
  $("agent-state").dataset.state = "none";
  $("agent-state").textContent = "no agent yet";
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
$("views").addEventListener("change", ({ target: { value } }) => {
  document.querySelector("main").dataset.view = value;
});
$("agent").addEventListener("change", () => {
  chosen = true;
  showCurl();
  if ($("topic").readOnly) connect();
});
$("again").addEventListener("click", connect);
$("token").addEventListener("input", showToken);
for (const id of ["topic", "to"]) $(id).addEventListener("input", showCurl);
$("text").addEventListener("keydown", onKey);
for (const id of ["copy-read", "copy-send"]) $(id).addEventListener("click", copy);
window.addEventListener("hashchange", takeFragment);
showToken();
takeFragment();
