// Updates the page from `GET /v1/events`.
//
//   numbers that change often (in flight, headroom, progress of a sweep)   are written into the page
//   everything else                                                        the page is fetched again, and its parts
//                                                                          (`data-live`, by id) replace the old ones
//
// So text and structure have one source, the server, and a page shows the same with and without JavaScript. Ages are by
// the server's clock, which comes with every event; the clock of this machine may be wrong by hours.

const SILENT_S = 25; // the server sends an event at least every 10 s; after this time the connection counts as lost
const RETRY_S = 3;
const SOON_S = 0.4; // collects changes that arrive together
const APART_S = 3; // between two fetches for values that change often
const MOVING = new Set(["in_flight", "headroom", "headroom_ratio", "progress", "replicas", "gateway_clients"]);
const ONE = document.querySelector("section[data-backend]")?.dataset.backend;

const live = document.getElementById("live");
const clock = { at: Date.parse(document.body.dataset.now), read: responseMoment() };
const stream = { source: null, receivedAt: performance.now(), triedAt: 0, isLive: null, known: new Map() };
const fetching = { timer: null, dueAt: Infinity, lastAt: performance.now(), isUnderWay: false };
const made = new WeakMap(); // by part of the page: the HTML that the server sent
let afterwards = () => {};

export function follow(then) {
  afterwards = then;
  for (const part of document.querySelectorAll("[data-live]")) made.set(part, essence(part));
  connect();
  setInterval(everySecond, 1000);
  addEventListener("pagehide", disconnect);
  addEventListener("pageshow", (event) => event.persisted && connect());
  document.addEventListener("visibilitychange", () => (document.hidden ? disconnect() : connect()));
}

// ------------------------------------------------------------------------------------------------------------- time
function responseMoment() {
  const [entry] = performance.getEntriesByType("navigation");
  return entry?.responseStart ?? performance.now();
}

function serverNow() {
  return clock.at + (performance.now() - clock.read);
}

function span(seconds) {
  for (const [unit, length] of [["d", 86400], ["h", 3600], ["min", 60]]) {
    if (seconds >= 2 * length) return `${Math.round(seconds / length)} ${unit}`;
  }
  return `${Math.round(seconds)} s`;
}

function showAges() {
  const now = serverNow();
  for (const time of document.querySelectorAll("time[data-age]")) {
    const left = (Date.parse(time.dateTime) - now) / 1000;
    write(time, left > 0 ? `in ${span(left)}` : `${span(-left)} ago`);
  }
}

function everySecond() {
  showAges();
  const silent = (performance.now() - Math.max(stream.receivedAt, stream.triedAt)) / 1000;
  if (silent > SILENT_S && stream.source?.readyState !== EventSource.CLOSED) {
    showLive(false);
    connect();
  }
  if (stream.isLive === false && !document.hidden) showLive(false);
}

// ----------------------------------------------------------------------------------------------------------- stream
function connect() {
  stream.source?.close();
  stream.triedAt = performance.now();
  const only = ONE === undefined ? "" : `?backend=${encodeURIComponent(ONE)}`;
  const source = (stream.source = new EventSource(`/v1/events${only}`));
  source.addEventListener("backend", (event) => receive(event, changed));
  source.addEventListener("removed", (event) => receive(event, () => refetch(SOON_S)));
  source.addEventListener("heartbeat", (event) => receive(event, () => {}));
  source.addEventListener("error", () => {
    showLive(false);
    // An EventSource reconnects after a lost connection, but not after an error response.
    if (source.readyState !== EventSource.CLOSED || source !== stream.source) return;
    refetch(RETRY_S);
    setTimeout(() => document.hidden || connect(), RETRY_S * 1000);
  });
}

// Browsers allow six connections per server over all tabs, so hidden tabs keep none.
function disconnect() {
  stream.source?.close();
  stream.isLive = false;
}

function receive(event, act) {
  const data = JSON.parse(event.data);
  clock.at = Date.parse(data.at);
  clock.read = stream.receivedAt = performance.now();
  act(data);
  showLive(true);
}

function showLive(isLive) {
  if (isLive && stream.isLive === false) refetch(SOON_S); // changes that were missed
  const hasTurned = stream.isLive !== null && stream.isLive !== isLive;
  stream.isLive = isLive;
  live.className = `live ${isLive ? "on" : "off"}`;
  const age = span((performance.now() - stream.receivedAt) / 1000);
  const status = isLive ? "live" : `connection lost ${age} ago; reconnecting`;
  write(live.querySelector(".status"), status);
  if (hasTurned) announce(isLive ? "Live updates resumed." : "Live updates interrupted.");
}

function announce(text) {
  write(document.getElementById("announcer"), text);
}

// ---------------------------------------------------------------------------------------------------------- changes
function changed({ backend: name, changed: news }) {
  const known = stream.known.get(name);
  const now = { ...known, ...news };
  stream.known.set(name, now);
  const place = document.querySelector(`[data-backend="${CSS.escape(name)}"]`);
  if (place) showNumbers(place, now);
  if (known === undefined) {
    // The first event of a backend is its whole document: fetch only if the page is older.
    if (place && (place.dataset.version !== String(now.version) || place.dataset.state !== now.state)) refetch(SOON_S);
    else if (!place && !location.search) refetch(SOON_S);
    return;
  }
  if ("cap" in news || "state" in news) announce(`${name}: cap ${now.cap}, ${now.state}`);
  const keys = Object.keys(news);
  const isTurn = "progress" in news && progressKey(known) !== progressKey(now);
  if (isTurn || keys.some((key) => !MOVING.has(key))) refetch(SOON_S);
  else if (ONE !== undefined) refetch(APART_S);
}

function progressKey({ progress }) {
  return progress === null ? "" : `${progress.sweep_id} ${progress.level}`;
}

function showNumbers(place, now) {
  const organic = now.in_flight.organic;
  const meter = place.querySelector("meter");
  if (meter && organic !== null) {
    meter.value = organic;
    put(place, "organic", plain(organic));
    put(place, "headroom", plain(Math.abs(now.headroom)));
    put(place, "free", now.headroom >= 0 ? "free" : "over the cap");
    put(place, "ratio", `${Math.round(100 * now.headroom_ratio)}%`);
  }
  const running = now.progress;
  const bar = place.querySelector("progress");
  if (running && bar) {
    bar.value = running.requests;
    put(place, "level", running.level);
    put(place, "phase", running.phase);
    put(place, "over", running.exceedances);
    put(place, "n", running.n);
    put(place, "verdict", running.verdict || "no verdict");
    put(
      place,
      "spent",
      `${running.requests} of ${running.requests_budget} requests, ` +
        `${Math.round(running.elapsed_s)} of ${Math.round(running.duration_budget_s)} s`,
    );
  }
}

function put(place, name, value) {
  const element = place.querySelector(`[data-value="${name}"]`);
  if (element) write(element, String(value));
}

function plain(number) {
  return String(Number(number.toPrecision(4)));
}

function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// ------------------------------------------------------------------------------------------------------------ fetch
function refetch(afterS) {
  const earliest = Math.max(performance.now() + afterS * 1000, fetching.lastAt + 1000 * Math.max(afterS, 1));
  if (earliest >= fetching.dueAt) return;
  clearTimeout(fetching.timer);
  fetching.dueAt = earliest;
  fetching.timer = setTimeout(fetchPage, earliest - performance.now());
}

async function fetchPage() {
  fetching.dueAt = Infinity;
  if (fetching.isUnderWay) {
    refetch(SOON_S); // the fetch under way may have missed the change
    return;
  }
  fetching.isUnderWay = true;
  fetching.lastAt = performance.now();
  try {
    const answer = await fetch(location.href, { headers: { Accept: "text/html" }, cache: "no-store" });
    if (answer.ok) take(new DOMParser().parseFromString(await answer.text(), "text/html"));
    else if (answer.status === 401) location.reload(); // the session has ended: shows the sign-in form
  } catch {
    // The event stream reports the outage, and the page is fetched again when it reconnects.
  } finally {
    fetching.isUnderWay = false;
  }
}

function take(fresh) {
  const cards = document.getElementById("cards");
  const freshCards = fresh.getElementById("cards");
  for (const part of fresh.querySelectorAll("[data-live]")) {
    const old = document.getElementById(part.id);
    if (old) swap(old, part);
  }
  if (cards && freshCards) arrange(cards, freshCards);
  showAges();
  afterwards();
}

function swap(old, part) {
  if (made.get(old) === essence(part) || isInUse(old)) return;
  const focused = old.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
  const imported = adopt(part);
  old.replaceWith(imported);
  if (focused !== null) imported.querySelector(`a[href="${CSS.escape(focused)}"]`)?.focus();
}

function adopt(part) {
  const imported = document.importNode(part, true);
  made.set(imported, essence(part));
  return imported;
}

// The HTML of the server without ages, which scripts update.
function essence(part) {
  return part.outerHTML.replace(/(<time [^>]*data-age[^>]*>)[^<]*/g, "$1");
}

// The user is typing there, has opened it, or has moved the focus into it. `swap` restores the focus of a link; a part
// with any other focused element is not replaced.
function isInUse(part) {
  return part.querySelector("details[open], :focus:not(a)") !== null;
}

function arrange(cards, fresh) {
  const wanted = [...fresh.children].map((part) => part.id);
  for (const card of [...cards.children]) if (!wanted.includes(card.id)) card.remove();
  wanted.forEach((id, index) => {
    const here = cards.children[index];
    if (here?.id === id) return;
    const card = document.getElementById(id) ?? adopt(fresh.children[index]);
    cards.insertBefore(card, here ?? null);
  });
}
