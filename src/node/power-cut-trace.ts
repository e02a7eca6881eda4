/** Reads what `strace -f -y -xx` wrote: the system calls of a process in order, with when each began and ended. */

export interface TracedCall {
  readonly name: string;
  /** As they were printed; strings and paths decoded. */
  readonly args: readonly TracedArgument[];
  /** Negative for an error; known when the call has ended. */
  result: number;
}

export interface TracedArgument {
  readonly text: string;
  readonly bytes: Buffer | undefined;
  /** Of a file descriptor: the path that it stands for at that moment. */
  readonly path: string | undefined;
}

export type TraceStep =
  | { readonly at: 'begin'; readonly call: TracedCall }
  | { readonly at: 'end'; readonly call: TracedCall };

export class TraceParser {
  readonly #unfinished = new Map<string, TracedCall>();

  /** The steps that one line tells: a call may begin in one line and end in another. */
  take(line: string): TraceStep[] {
    const space = line.indexOf(' ');
    const thread = line.slice(0, space);
    const body = line.slice(space).trimStart();
    if (body.startsWith('<... ')) {
      const call = this.#unfinished.get(thread);
      if (call === undefined) return [];
      this.#unfinished.delete(thread);
      setResult(call, body);
      return [{ at: 'end', call }];
    }
    const open = body.indexOf('(');
    const cut = body.endsWith('<unfinished ...>');
    const close = cut ? body.lastIndexOf('<unfinished') : body.lastIndexOf(') ');
    if (body.startsWith('+++') || open < 0 || close < 0) return [];
    const args = body
      .slice(open + 1, close)
      .trim()
      .replace(/,$/, '');
    const call: TracedCall = {
      name: body.slice(0, open),
      args: args === '' ? [] : args.split(', ').map(parseArgument),
      result: Number.NaN,
    };
    if (cut) {
      this.#unfinished.set(thread, call);
      return [{ at: 'begin', call }];
    }
    setResult(call, body.slice(close));
    return [
      { at: 'begin', call },
      { at: 'end', call },
    ];
  }
}

function setResult(call: TracedCall, text: string): void {
  const found = /\) += (-?\d+)/.exec(text);
  call.result = found === null ? -1 : Number(found[1]);
}

function parseArgument(text: string): TracedArgument {
  if (text.startsWith('"')) return { text, bytes: unhex(text.slice(1, text.lastIndexOf('"'))), path: undefined };
  const path = /^(?:-?\d+|AT_FDCWD)<((?:\\x[\da-f]{2})*)>(\(deleted\))?/.exec(text);
  if (path === null || path[2] !== undefined) return { text, bytes: undefined, path: undefined };
  return { text, bytes: undefined, path: unhex(path[1]!).toString() };
}

function unhex(text: string): Buffer {
  return Buffer.from(text.replaceAll('\\x', ''), 'hex');
}
