/** Time as one step sees it. Every question whether a moment has come also says when to ask again. */
export class Alarm {
  nowMs = 0;
  /** The next moment at which something is due; `Infinity` where nothing is. */
  wakeAtMs = Infinity;

  begin(nowMs: number): void {
    this.nowMs = nowMs;
    this.wakeAtMs = Infinity;
  }

  due(atMs: number): boolean {
    if (this.nowMs >= atMs) return true;
    this.wakeAtMs = Math.min(this.wakeAtMs, atMs);
    return false;
  }
}
