/**
 * Whether a history of clients could have come from one register per key that takes one operation at a time, each somewhere
 * between its call and its answer (Wing and Gong). Keys are independent, so each is searched alone; of the orders that lead
 * to the same operations done and the same value, one is followed (Lowe).
 *
 * An operation without an answer may have happened at any time after its call, or never.
 */

export type Value = string | number | null;

export type RegisterStep =
  | { readonly kind: 'read'; readonly value: Value }
  | { readonly kind: 'write'; readonly value: Value }
  /** Replaces `expected`. What was refused is a read of what was found instead. */
  | { readonly kind: 'replace'; readonly expected: Value; readonly value: Value };

export interface Operation {
  readonly key: string;
  readonly client: number;
  /** By one clock for all clients. */
  readonly calledMs: number;
  /** Infinity: never. */
  readonly answeredMs: number;
  readonly step: RegisterStep;
}

export type Verdict =
  | { readonly linearizable: true; readonly searched: number }
  /** `blocked` fits nowhere behind `order`, the longest order that was found before it. */
  | {
      readonly linearizable: false;
      readonly key: string;
      readonly blocked: Operation;
      readonly order: readonly Operation[];
    };

export interface CheckOptions {
  /** What every key holds at first. */
  readonly initial: Value;
  /** The search throws where it would need more. */
  readonly statesMax?: number;
}

const STATES_MAX = 2_000_000;

export function checkLinearizability(history: readonly Operation[], options: CheckOptions): Verdict {
  let searched = 0;
  for (const [key, operations] of Map.groupBy(history, (operation) => operation.key)) {
    const search = new Search(key, operations, options);
    const verdict = search.run();
    if (!verdict.linearizable) return verdict;
    searched += verdict.searched;
  }
  return { linearizable: true, searched };
}

/** A call or an answer, in a list by time from which the operations that were placed are taken out. */
interface Event {
  readonly at: number;
  readonly id: number;
  readonly operation: Operation;
  /** Of a call: its answer. */
  readonly answer: Event | undefined;
  before: Event | undefined;
  next: Event | undefined;
}

class Search {
  readonly #key: string;
  readonly #options: CheckOptions;
  readonly #head: Event;
  /** Operations that were answered and have no place yet. */
  #owed: number;

  constructor(key: string, operations: readonly Operation[], options: CheckOptions) {
    this.#key = key;
    this.#options = options;
    const events: Event[] = [];
    const told = withoutUnseen(operations);
    for (const [id, operation] of told.entries()) {
      const { calledMs, answeredMs } = operation;
      const common = { id, operation, before: undefined, next: undefined };
      const answer: Event | undefined =
        answeredMs === Infinity ? undefined : { ...common, at: answeredMs, answer: undefined };
      if (answer !== undefined) events.push(answer);
      // Which of two at one time was first is not known: the call, which allows more.
      events.push({ ...common, at: calledMs, answer });
    }
    this.#owed = events.length - told.length;
    const isAnswer = new Set(events.map(({ answer }) => answer));
    const sorted = events.toSorted((a, b) => a.at - b.at || Number(isAnswer.has(a)) - Number(isAnswer.has(b)));
    this.#head = {
      at: -Infinity,
      id: -1,
      operation: operations[0]!,
      answer: undefined,
      before: undefined,
      next: undefined,
    };
    let last = this.#head;
    for (const event of sorted) {
      [last.next, event.before] = [event, last];
      last = event;
    }
    this.#answers = isAnswer;
  }

  readonly #answers: ReadonlySet<Event | undefined>;

  run(): Verdict {
    const { initial, statesMax = STATES_MAX } = this.#options;
    const seen = new Set<string>();
    const placed: { readonly call: Event; readonly value: Value; readonly done: bigint }[] = [];
    let [value, done] = [initial, 0n];
    let [order, blocked]: [readonly Operation[], Operation] = [[], this.#head.operation];
    let event = this.#head.next;
    while (this.#owed > 0) {
      if (event !== undefined && !this.#answers.has(event)) {
        const after = apply(event.operation.step, value);
        const next = done | (1n << BigInt(event.id));
        if (after !== undefined && addNew(seen, `${next.toString(36)} ${JSON.stringify(after.value)}`)) {
          if (seen.size > statesMax)
            throw new Error(`key ${this.#key}: the history has too many orders, ${statesMax} states were not enough`);
          placed.push({ call: event, value, done });
          [value, done] = [after.value, next];
          this.#takeOut(event);
          event = this.#head.next;
        } else event = event.next;
        continue;
      }
      // Whoever was answered by now had to be placed before: the last choice was wrong.
      if (placed.length >= order.length && event !== undefined)
        [order, blocked] = [placed.map(({ call }) => call.operation), event.operation];
      const last = placed.pop();
      if (last === undefined) return { linearizable: false, key: this.#key, blocked, order };
      [value, done] = [last.value, last.done];
      this.#putBack(last.call);
      event = last.call.next;
    }
    return { linearizable: true, searched: seen.size };
  }

  #takeOut(call: Event): void {
    for (const event of [call, call.answer]) {
      if (event?.before === undefined) continue;
      event.before.next = event.next;
      if (event.next !== undefined) event.next.before = event.before;
    }
    if (call.answer !== undefined) this.#owed -= 1;
  }

  #putBack(call: Event): void {
    for (const event of [call.answer, call]) {
      if (event?.before === undefined) continue;
      event.before.next = event;
      if (event.next !== undefined) event.next.before = event;
    }
    if (call.answer !== undefined) this.#owed += 1;
  }
}

/**
 * Without the operations that had no answer and whose value nobody met: an order with one of them is an order without it.
 * They are what makes a search long, since their place may be anywhere.
 */
function withoutUnseen(operations: readonly Operation[]): readonly Operation[] {
  const met = new Set<Value>();
  for (const { step, answeredMs } of operations)
    if (step.kind === 'replace' || (step.kind === 'read' && answeredMs !== Infinity))
      met.add(step.kind === 'read' ? step.value : step.expected);
  const left = operations.filter(
    ({ step, answeredMs }) => answeredMs !== Infinity || (step.kind !== 'read' && met.has(step.value)),
  );
  return left.length === operations.length ? left : withoutUnseen(left);
}

/** What the register holds after this step; undefined where it cannot come next. */
function apply(step: RegisterStep, value: Value): { readonly value: Value } | undefined {
  if (step.kind === 'write') return { value: step.value };
  if (step.kind === 'read') return step.value === value ? { value } : undefined;
  return step.expected === value ? { value: step.value } : undefined;
}

function addNew(seen: Set<string>, state: string): boolean {
  if (seen.has(state)) return false;
  seen.add(state);
  return true;
}
