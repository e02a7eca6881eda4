/**
 * How a verb reaches its node: through `admin.sock` where a process serves the directory, else by opening the directory
 * here, for as long as the verb runs. The verb does not see the difference.
 */
import { stat } from 'node:fs/promises';
import { join } from 'node:path';
import { isNostosError } from '../base/errors.ts';
import { callAdmin, isServed, type CallOptions } from '../node/admin-socket.ts';
import type { OperationInput, OperationName, OperationResult } from '../node/operations.ts';
import { MARKER_FILE } from '../restore/local/marker.ts';
import { ExitError } from './exit-codes.ts';

export interface NodeAccess extends AsyncDisposable {
  /** `running`: in the process that serves the directory. */
  readonly via: 'running' | 'opened';
  call<Name extends OperationName>(
    name: Name,
    input: OperationInput<Name>,
    options?: CallOptions,
  ): Promise<OperationResult<Name>>;
}

export interface AccessOptions {
  readonly dir: string;
  readonly signal: AbortSignal;
  /** Make a data directory where there is none; otherwise a mistyped path would become a new, empty node. */
  readonly create?: boolean;
}

function runningNode({ dir, signal }: AccessOptions): NodeAccess {
  return {
    via: 'running',
    call: (name, input, options) => callAdmin(dir, { name, input }, { signal, ...options }),
    [Symbol.asyncDispose]: async () => {},
  };
}

async function openedNode({ dir, signal }: AccessOptions): Promise<NodeAccess> {
  const { openNode } = await import('../node/open-node.ts');
  const { runOperation } = await import('../node/operations.ts');
  const node = await openNode({ dir, scrubIntervalMs: false, signal });
  return {
    via: 'opened',
    call: (name, input, options = {}) =>
      runOperation(
        node,
        { name, input },
        {
          signal: options.signal ?? signal,
          onProgress: options.onProgress ?? (() => {}),
          emit: async (item) => options.onItem?.(item),
        },
      ),
    [Symbol.asyncDispose]: () => node.close(),
  };
}

/** Also one that a restore has begun to fill: opening it says so. */
export async function isDataDirectory(dir: string): Promise<boolean> {
  const found = await Promise.allSettled(['node.json', MARKER_FILE].map((name) => stat(join(dir, name))));
  return found.some(({ status }) => status === 'fulfilled');
}

export async function accessNode(options: AccessOptions): Promise<NodeAccess> {
  const { dir, create = false } = options;
  if (await isServed(dir)) return runningNode(options);
  if (!create && !(await isDataDirectory(dir)))
    throw new ExitError(
      'notFound',
      `there is no Nostos data directory at ${dir}`,
      'Give its path with --dir, or make one: nostos tenant create <name> --dir <path>',
    );
  try {
    return await openedNode(options);
  } catch (error) {
    // Another process opened it between the two looks, and serves it by now.
    if (isNostosError(error, 'DIRECTORY_LOCKED') && (await isServed(dir))) return runningNode(options);
    throw error;
  }
}
