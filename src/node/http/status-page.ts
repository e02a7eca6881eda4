/**
 * The status page: a shell without data, and a script that fetches `/v1/status` and `/v1/tenants` with the token of the
 * visitor. The token comes in the fragment of the address, which browsers never send, or is typed in; it is kept for the
 * tab only. Everything is inline under a policy that allows nothing from elsewhere.
 */
import { createHash } from 'node:crypto';

const STYLE = `
:root {
  color-scheme: light dark;
  --paper: light-dark(#f6f5f1, #14171a);
  --card: light-dark(#fffefb, #1c2126);
  --ink: light-dark(#1d2329, #e8e6e0);
  --soft: light-dark(#5b636b, #9aa4ad);
  --line: light-dark(#dedbd2, #2e363d);
  --sea: light-dark(#0b6477, #5cc3d8);
  --good: light-dark(#1c6e42, #6fd39b);
  --bad: light-dark(#a3261c, #ff9486);
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 ui-sans-serif, system-ui, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
header { display: flex; flex-wrap: wrap; align-items: center; gap: .5rem 1rem; margin-bottom: 1.75rem; }
h1 { display: flex; align-items: center; gap: .6rem; margin: 0; font-size: 1.5rem; letter-spacing: -.01em; }
h1 svg { width: 1.9rem; height: 1.9rem; color: var(--sea); }
h2 { margin: 2rem 0 .6rem; font-size: 1.05rem; }
#state { margin: 0 0 0 auto; padding: .2rem .8rem; border: 1px solid var(--line); border-radius: 99px; color: var(--soft); font-size: .9rem; }
#state[data-kind=good] { color: var(--good); border-color: currentColor; }
#state[data-kind=bad] { color: var(--bad); border-color: currentColor; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(12rem, 1fr)); gap: 1rem; }
.card { padding: 1rem 1.1rem; background: var(--card); border: 1px solid var(--line); border-radius: .75rem; }
.card h3 { margin: 0; color: var(--soft); font-size: .85rem; font-weight: 500; }
.card p { margin: .1rem 0 0; }
.figure { font-size: 1.7rem; font-weight: 600; font-variant-numeric: tabular-nums; letter-spacing: -.02em; }
.note { color: var(--soft); font-size: .85rem; }
.spark { display: block; width: 100%; height: 2.2rem; margin-top: .4rem; color: var(--sea); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1.25rem; margin: 0; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; }
table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .45rem .9rem .45rem 0; border-bottom: 1px solid var(--line); text-align: left; white-space: nowrap; }
th { color: var(--soft); font-size: .85rem; font-weight: 500; }
.number { text-align: right; }
.events td:last-child { white-space: normal; overflow-wrap: anywhere; }
code { font: .85em ui-monospace, monospace; }
form { display: grid; gap: .6rem; max-width: 34rem; }
form h2, form p { margin: 0; }
#why:empty { display: none; }
input { width: 100%; padding: .6rem .75rem; border: 1px solid var(--line); border-radius: .5rem; background: var(--card); color: inherit; font: inherit; }
button { justify-self: start; padding: .55rem 1.1rem; border: 0; border-radius: .5rem; background: var(--sea); color: var(--paper); font: inherit; font-weight: 600; cursor: pointer; }
:focus-visible { outline: 3px solid var(--sea); outline-offset: 2px; }
[hidden] { display: none !important; }
@media (max-width: 30rem) { dl { grid-template-columns: 1fr; } dt { margin-top: .4rem; } }
`;

const SCRIPT = `
const POLL_MS = 2000, SPARK_POINTS = 60;
const byId = (id) => document.getElementById(id);
const count = (value) => value.toLocaleString('en-US');
const bytes = (value) => {
  const units = ['bytes', 'KiB', 'MiB', 'GiB', 'TiB'];
  let unit = 0;
  for (; value >= 1024 && unit < 4; unit++) value /= 1024;
  return (unit ? value.toFixed(1) : count(value)) + ' ' + units[unit];
};
const duration = (ms) => {
  const s = Math.round(ms / 1000), m = Math.floor(s / 60), h = Math.floor(m / 60);
  return s < 60 ? s + ' s' : m < 60 ? m + ' min ' + (s % 60) + ' s' : h < 48 ? h + ' h ' + (m % 60) + ' min' : Math.floor(h / 24) + ' days';
};
let token = sessionStorage.getItem('token') ?? '';
function takeFragment() {
  const given = new URLSearchParams(location.hash.slice(1)).get('token');
  if (!given) return;
  token = given;
  sessionStorage.setItem('token', token);
  history.replaceState(null, '', location.pathname);
}
async function fetchJson(path) {
  const response = await fetch(path, { headers: { authorization: 'Bearer ' + token }, cache: 'no-store' });
  if (response.ok) return response.json();
  const { error } = await response.json().catch(() => ({ error: { message: 'HTTP ' + response.status } }));
  throw Object.assign(new Error(error.message), { status: response.status });
}
function setState(kind, text) {
  const state = byId('state');
  if (state.textContent !== text) state.textContent = text;
  state.dataset.kind = kind;
}
function fill(id, pairs) {
  byId(id).replaceChildren(...pairs.flatMap(([name, value]) => {
    const dt = document.createElement('dt'), dd = document.createElement('dd');
    dt.textContent = name;
    dd.textContent = value;
    return [dt, dd];
  }));
}
const rates = [];
let last;
function showRate(status) {
  const now = performance.now();
  if (last && last.boot === status.boot)
    rates.push(Math.max(0, (status.writes.committed - last.committed) / ((now - last.at) / 1000)));
  last = { at: now, committed: status.writes.committed, boot: status.boot };
  if (rates.length > SPARK_POINTS) rates.shift();
  byId('rate').textContent = rates.length ? count(Math.round(rates.at(-1))) : '–';
  const most = Math.max(1, ...rates);
  const points = rates.map((rate, i) => ((i + SPARK_POINTS - rates.length) * (200 / (SPARK_POINTS - 1))).toFixed(1) + ',' + (38 - (rate / most) * 36).toFixed(1));
  byId('spark').setAttribute('points', points.join(' '));
}
function show(status) {
  const { log, tenants, writes, scrub } = status;
  showRate(status);
  byId('committed').textContent = count(writes.committed);
  byId('failed').textContent = writes.failed ? count(writes.failed) + ' failed' : 'none failed';
  byId('lsn').textContent = count(log.watermark);
  byId('logsize').textContent = bytes(log.bytes) + ' in ' + count(log.segments) + (log.segments === 1 ? ' segment' : ' segments');
  byId('tenantcount').textContent = count(tenants.total);
  byId('opencount').textContent = count(tenants.open) + ' open';
  fill('node', [
    ['Directory', status.dir],
    ['Node', status.node],
    ['Role', status.role + ', term ' + log.term],
    ['Version', 'Nostos ' + status.version],
    ['Running', 'process ' + status.pid + ', for ' + duration(Date.now() - status.startedAtMs)],
    ['Memory', bytes(status.residentBytes) + ', ' + count(status.openFiles) + ' open files'],
    ['Log holds', 'records ' + count(log.firstLsn) + ' to ' + count(log.lastLsn)],
    ['Last opening', count(log.recovery.recordsScanned) + ' records read in ' + Math.round(log.recovery.elapsedMs) + ' ms' +
      (log.recovery.tornBytes ? ', ' + bytes(log.recovery.tornBytes) + ' of an unfinished write cut' : '')],
    ...(status.rollbackFiles.count ? [['Rollback files', count(status.rollbackFiles.count) + ', ' + bytes(status.rollbackFiles.bytes)]] : []),
    ['Background check', scrub.damaged.length ? 'DAMAGED: ' + scrub.damaged.join(', ') : scrub.tenants ? count(scrub.rows) + ' rows in ' + count(scrub.tenants) + ' tenants, no damage' : 'has not run yet'],
  ]);
  byId('group').hidden = !status.group;
  const wrong = status.group ? showGroup(status.group) : '';
  if (scrub.damaged.length) setState('bad', 'damage found');
  else if (wrong) setState('bad', wrong);
  else setState('good', 'healthy, ' + status.role);
}
const rowOf = (cells) => {
  const row = document.createElement('tr');
  for (const [value, kind] of cells) {
    const cell = document.createElement('td');
    if (kind === 'code') cell.append(Object.assign(document.createElement('code'), { textContent: value }));
    else cell.textContent = value;
    if (kind === 'number') cell.className = 'number';
    row.append(cell);
  }
  return row;
};
const time = (ms) => new Date(ms).toISOString().replace('T', ' ').slice(0, 19);
/** What is wrong, in a few words; nothing where the node is where it belongs. */
function showGroup({ name, role, term, inSync, following, record, replicas, lastLsn, watermark, stopped, rejoin, progress, events, peerErrors }) {
  const current = progress ? progress.current : rejoin.action;
  const home = current === 'lead' || current === 'stream';
  fill('groupfacts', [
    ['Group', name],
    ['Role', role + ', term ' + term + (following ? ', ' + following.phase + ' from ' + following.store : '')],
    ['In sync', inSync ? 'yes' : 'no'],
    ['Not committed yet', count(Math.max(0, lastLsn - watermark)) + ' records'],
    ['Rejoin', current + (progress && progress.attempt > 1 ? ' (attempt ' + progress.attempt + ')' : '') + ': ' + rejoin.reason],
    ...(progress && progress.attemptsEver ? [['Attempts', count(progress.attemptsTotal) + ' since it was last in place, ' + count(progress.attemptsEver) + ' in all']] : []),
    ...(stopped ? [['Stopped', stopped.reason]] : []),
    ...(peerErrors.count ? [['Peer errors', count(peerErrors.count) + ', the last one: ' + peerErrors.last]] : []),
    ...(rejoin.advice ? [['You may', rejoin.advice]] : []),
  ]);
  const lead = record && record.primary ? record.primary.store : '';
  byId('members').replaceChildren(...(record ? record.members : []).map((store) => {
    const replica = replicas.find((one) => one.store === store);
    const place = store === lead ? 'primary' : record.inSync.includes(store) ? 'in sync' : 'behind';
    const lag = store === lead ? '0' : replica ? count(Math.max(0, lastLsn - replica.acked)) : '';
    return rowOf([[store, 'code'], [place, ''], [lag, 'number']]);
  }));
  const steps = progress ? progress.history.map(({ atMs, action, outcome, why }) => ({ atMs, text: action + ' ' + outcome + ': ' + why })) : [];
  const last = [...events, ...steps].sort((a, b) => b.atMs - a.atMs).slice(0, 8);
  byId('events').replaceChildren(...last.map(({ atMs, text }) => rowOf([[time(atMs), 'code'], [text, '']])));
  return current === 'operator' ? 'waits for a person' : stopped ? 'stopped: ' + stopped.reason : home || current === 'go-on' ? '' : current;
}
function showTenants({ total, tenants }) {
  byId('tenants').replaceChildren(...tenants.map(({ name, schemaVersion, createdAt, uuid }) =>
    rowOf([[name, ''], [schemaVersion, 'number'], [count(createdAt), 'number'], [uuid, 'code']])));
  byId('more').textContent = total > tenants.length ? 'The first ' + count(tenants.length) + ' of ' + count(total) + '.' : total ? '' : 'None yet.';
}
async function poll() {
  try {
    show(await fetchJson('/v1/status'));
    showTenants(await fetchJson('/v1/tenants?limit=50'));
    byId('ask').hidden = true;
    byId('content').hidden = false;
  } catch (error) {
    if (error.status === 401 || error.status === 403) {
      byId('ask').hidden = false;
      byId('content').hidden = true;
      byId('why').textContent = token ? error.message : '';
      setState('', 'waiting for a token');
      return;
    }
    setState('bad', error.status ? error.message : 'not reachable');
  }
  setTimeout(poll, POLL_MS);
}
byId('ask').addEventListener('submit', (event) => {
  event.preventDefault();
  token = byId('token').value.trim();
  sessionStorage.setItem('token', token);
  poll();
});
addEventListener('hashchange', () => { takeFragment(); if (!byId('ask').hidden) poll(); });
takeFragment();
poll();
`;

const BODY = `
<main>
  <header>
    <h1>
      <svg viewBox="0 0 32 32" fill="none" stroke="currentColor" stroke-width="2.4" stroke-linecap="round" stroke-linejoin="round" aria-hidden="true">
        <path d="M16 4v17M16 5c5 3 7.500 8 7.500 13H16M13 9c-2.500 2.500-4 5.500-4.500 9H13M4 23c2 2.500 4 2.500 6 0 2 2.500 4 2.500 6 0 2 2.500 4 2.500 6 0 2 2.500 4 2.500 6 0"/>
      </svg>
      Nostos
    </h1>
    <p id="state" role="status">connecting…</p>
  </header>
  <noscript><p>This page needs JavaScript; <code>nostos status</code> shows the same.</p></noscript>
  <form id="ask" hidden>
    <h2>This node asks for a token</h2>
    <p class="note"><code>nostos serve</code> says where it is. It stays in this tab.</p>
    <label for="token">Token</label>
    <input id="token" type="password" autocomplete="off" required aria-describedby="why">
    <p id="why" role="alert" class="note"></p>
    <button>Show status</button>
  </form>
  <div id="content" hidden>
    <section class="cards" aria-label="Figures">
      <div class="card">
        <h3>Writes per second</h3>
        <p class="figure" id="rate">–</p>
        <svg class="spark" viewBox="0 0 200 40" preserveAspectRatio="none" role="img" aria-label="Writes per second, the last two minutes">
          <polyline id="spark" fill="none" stroke="currentColor" stroke-width="2" vector-effect="non-scaling-stroke" points=""/>
        </svg>
      </div>
      <div class="card"><h3>Committed since opening</h3><p class="figure" id="committed">–</p><p class="note" id="failed"></p></div>
      <div class="card"><h3>Committed up to record</h3><p class="figure" id="lsn">–</p><p class="note" id="logsize"></p></div>
      <div class="card"><h3>Tenants</h3><p class="figure" id="tenantcount">–</p><p class="note" id="opencount"></p></div>
    </section>
    <section aria-labelledby="about"><h2 id="about">Node</h2><dl id="node" class="card"></dl></section>
    <section id="group" aria-labelledby="ofgroup" hidden>
      <h2 id="ofgroup">Group</h2>
      <dl id="groupfacts" class="card"></dl>
      <h2 id="ofmembers">Members</h2>
      <div class="scroll" tabindex="0" role="region" aria-labelledby="ofmembers">
        <table>
          <thead><tr><th scope="col">Store</th><th scope="col">Place</th><th scope="col" class="number">Records behind</th></tr></thead>
          <tbody id="members"></tbody>
        </table>
      </div>
      <h2 id="ofevents">Last events</h2>
      <div class="scroll" tabindex="0" role="region" aria-labelledby="ofevents">
        <table class="events">
          <thead><tr><th scope="col">When (UTC)</th><th scope="col">What</th></tr></thead>
          <tbody id="events"></tbody>
        </table>
      </div>
    </section>
    <section aria-labelledby="list">
      <h2 id="list">Tenants</h2>
      <div class="scroll" tabindex="0" role="region" aria-labelledby="list">
        <table>
          <thead><tr><th scope="col">Name</th><th scope="col" class="number">Schema</th><th scope="col" class="number">Made by record</th><th scope="col">UUID</th></tr></thead>
          <tbody id="tenants"></tbody>
        </table>
      </div>
      <p id="more" class="note"></p>
    </section>
  </div>
</main>`;

const ICON =
  'data:image/svg+xml,%3Csvg xmlns=%22http://www.w3.org/2000/svg%22 viewBox=%220 0 32 32%22 fill=%22none%22 stroke=%22%230b8aa3%22 stroke-width=%223%22%3E%3Cpath d=%22M16 4v17M16 5c5 3 7.500 8 7.500 13H16M4 25c4 4 8 4 12 0 4 4 8 4 12 0%22/%3E%3C/svg%3E';

function source(text: string): string {
  return `'sha256-${createHash('sha256').update(text).digest('base64')}'`;
}

const PAGE = {
  html: `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Nostos: node status</title>
<link rel="icon" href="${ICON}">
<style>${STYLE}</style>
</head>
<body>${BODY}
<script>${SCRIPT}</script>
</body>
</html>
`,
  policy: [
    "default-src 'none'",
    `script-src ${source(SCRIPT)}`,
    `style-src ${source(STYLE)}`,
    'img-src data:',
    "connect-src 'self'",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
  ].join('; '),
} as const;

/** The page and the content security policy that goes with it. */
export function renderStatusPage(): { readonly html: string; readonly policy: string } {
  return PAGE;
}
