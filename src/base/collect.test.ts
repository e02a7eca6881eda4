import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Worker } from 'node:worker_threads';
import { once } from 'node:events';

test('what a thread has left behind is collected once it is much, and not again before there is more', async () => {
  const [grown, again, left] = await inThread(`
    await pauseIsOver();
    const kept = used();
    let garbage = Array.from({ length: 100_000 }, (_, at) => ({ at }));
    garbage = undefined;
    report([collectIfGrown(), collectIfGrown(), used() - kept]);`);
  assert.deepEqual([grown, again], [true, false]);
  assert.ok((left as number) < 1024 * 1024, `${String(left)} bytes are left`);
});

test('a large heap is left to its own collector', async () => {
  const [collected] = await inThread(`
    const much = Array.from({ length: 1_500_000 }, (_, at) => ({ at, more: [at] }));
    await pauseIsOver();
    report([collectIfGrown(), much.length]);`);
  assert.equal(collected, false);
});

test('a thread that makes garbage without end spends at most a quarter of its time on this', async () => {
  const [share, times] = await inThread(`
    const live = Array.from({ length: 60_000 }, (_, at) => ({ at, more: [at] }));
    await pauseIsOver();
    let [spentMs, times, beganMs, nowMs] = [0, 0, performance.now(), 0];
    do {
      const garbage = Array.from({ length: 50_000 }, (_, at) => ({ at }));
      const beforeMs = performance.now();
      const collected = collectIfGrown(1);
      nowMs = performance.now();
      if (collected) times += 1;
      if (collected) spentMs += nowMs - beforeMs;
    } while (times < 6);
    report([spentMs / (nowMs - beganMs), times, live.length]);`);
  assert.equal(times, 6);
  assert.ok((share as number) <= 0.25, `${String(share)} of its time`);
});

async function inThread(body: string): Promise<unknown[]> {
  const worker = new Worker(
    `import { collectIfGrown } from ${JSON.stringify(new URL('./collect.ts', import.meta.url).href)};
     import { getHeapStatistics } from 'node:v8';
     import { parentPort } from 'node:worker_threads';
     const used = () => getHeapStatistics().used_heap_size;
     const report = (what) => parentPort.postMessage(what);
     const startedMs = performance.now();
     collectIfGrown();
     const endedMs = performance.now();
     const pauseIsOver = () => new Promise((resolve) => setTimeout(resolve, 5 * (endedMs - startedMs)));
     ${body}`,
    { eval: true },
  );
  const [said] = (await once(worker, 'message')) as [unknown[]];
  await worker.terminate();
  return said;
}
