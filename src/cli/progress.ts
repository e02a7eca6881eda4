/** Shows how far long work is, on stderr: a bar that redraws itself on a terminal, a line now and then elsewhere. */
import type { Progress } from '../node/types.ts';
import type { Io } from './io.ts';
import { bytes, count, style } from './render.ts';

const BAR_COLUMNS = 24;
const LINE_INTERVAL_MS = 2_000;
const REDRAW_INTERVAL_MS = 80;
const CLEAR_LINE = '\r\u001B[2K';

export interface ProgressDisplay {
  update(progress: Progress): void;
  /** Takes the bar off the screen. */
  done(): void;
}

function amount(value: number, unit: Progress['unit']): string {
  return unit === 'bytes' ? bytes(value) : `${count(value)} ${unit}`;
}

function describe(progress: Progress): string {
  const { phase, done, total, unit } = progress;
  if (total === undefined || total === 0) return `${phase}: ${amount(done, unit)}`;
  const percent = Math.floor((Math.min(done, total) / total) * 100);
  return `${phase}: ${percent} % of ${amount(total, unit)}`;
}

function bar(io: Io, progress: Progress): string {
  const share = progress.total ? Math.min(1, progress.done / progress.total) : 0;
  const full = Math.round(share * BAR_COLUMNS);
  return `${style(io, 'cyan', '█'.repeat(full))}${style(io, 'dim', '░'.repeat(BAR_COLUMNS - full))}`;
}

function terminalDisplay(io: Io): ProgressDisplay {
  let drawnAtMs = -Infinity;
  let drawn = false;
  return {
    update(progress) {
      const nowMs = performance.now();
      if (nowMs - drawnAtMs < REDRAW_INTERVAL_MS) return;
      drawnAtMs = nowMs;
      drawn = true;
      const text = describe(progress).slice(0, Math.max(10, io.columns - BAR_COLUMNS - 4));
      io.stderr.write(`${CLEAR_LINE}${bar(io, progress)} ${text}`);
    },
    done() {
      if (drawn) io.stderr.write(CLEAR_LINE);
      drawn = false;
    },
  };
}

/** The first line only after a while: short work stays quiet. */
function lineDisplay(io: Io): ProgressDisplay {
  let shownAtMs = performance.now();
  return {
    update(progress) {
      const nowMs = performance.now();
      if (nowMs - shownAtMs < LINE_INTERVAL_MS) return;
      shownAtMs = nowMs;
      io.stderr.write(`${describe(progress)}\n`);
    },
    done() {},
  };
}

export function progressDisplay(io: Io): ProgressDisplay {
  return io.stderrIsTty ? terminalDisplay(io) : lineDisplay(io);
}

/** Shows the progress of one call while it runs. */
export async function callWithDisplay<T>(
  io: Io,
  call: (onProgress: (progress: Progress) => void) => Promise<T>,
): Promise<T> {
  const display = progressDisplay(io);
  try {
    return await call((progress) => display.update(progress));
  } finally {
    display.done();
  }
}
