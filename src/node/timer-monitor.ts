/** Measures how late a 10 ms timer of this thread fires: what a stalled thread looks like from inside. */
export interface TimerReport {
  readonly ticks: number;
  readonly latenessMaxMs: number;
}

const INTERVAL_MS = 10;

export function monitorTimer(durationMs: number, onTick: () => void): Promise<TimerReport> {
  return new Promise((resolve) => {
    const startedMs = performance.now();
    let expectedMs = startedMs + INTERVAL_MS;
    let latenessMaxMs = 0;
    let ticks = 0;
    const tick = (): void => {
      const nowMs = performance.now();
      latenessMaxMs = Math.max(latenessMaxMs, nowMs - expectedMs);
      ticks += 1;
      onTick();
      if (nowMs - startedMs >= durationMs) return resolve({ ticks, latenessMaxMs });
      expectedMs = performance.now() + INTERVAL_MS;
      setTimeout(tick, INTERVAL_MS);
    };
    setTimeout(tick, INTERVAL_MS);
  });
}
