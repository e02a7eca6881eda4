/**
 * A log goes on in a new generation: after a recovery that accepted a loss, and after a restore from a backup, what comes
 * next must never be taken for what others may have at the same LSNs.
 *
 * The log itself stays: the same records, one more behind them, which names the end of the parent and the fork in one
 * (`fork.ts`). So a position of the parent at or below the fork lies on this history too, and one above it does not. All of
 * the tail is kept, and counts as committed from then on, since nobody else has a say in the new generation.
 *
 * Ended anywhere, the same call goes on: the record is there whole, or it is a torn tail that opening cuts.
 */
import type { Generation, Term } from '../base/brands.ts';
import { NostosError, isNostosError } from '../base/errors.ts';
import type { ChainPoint } from './chain.ts';
import { samePoint } from './chain.ts';
import type { LogDeps, LogOptions } from './log.ts';
import { Log } from './log.ts';

export interface GenerationOptions extends Omit<LogOptions, 'generation'> {
  /** That in which the log ends, or did before an earlier call. */
  readonly parent: Generation;
  /** One that this log has never been in. */
  readonly generation: Generation;
  /** Higher than any that a store of the group is known to have seen. */
  readonly term: Term;
  /** The record with which the log has to end; without it, whichever is the last. */
  readonly fork?: ChainPoint;
}

export interface GenerationStart {
  /** The end of the parent. */
  readonly fork: ChainPoint;
  /** The first record of the new generation, which is durable and committed. */
  readonly start: ChainPoint;
}

/** On a log that nobody has open. */
export function beginGeneration(deps: LogDeps, options: GenerationOptions): GenerationStart {
  const { parent, generation, term, fork, ...rest } = options;
  using log = openIn(deps, rest, [parent, generation]);
  if (log.end.generation === parent) {
    if (fork !== undefined && !samePoint(log.end, fork)) throw endsElsewhere(log.end, fork);
    log.startGeneration(generation, term);
    log.sync();
  }
  const { end } = log;
  const entry = log.history.at(end.lsn);
  const begins = entry?.firstLsn === end.lsn && end.term === term;
  if (entry === undefined || !begins || (fork !== undefined && !samePoint(entry.previous, fork)))
    throw endsElsewhere(end, fork ?? end);
  log.setWatermark(end.lsn);
  log.saveWatermark();
  return { fork: entry.previous, start: end };
}

/** Opens the log in the first of these generations in which it ends. */
function openIn(deps: LogDeps, options: Omit<LogOptions, 'generation'>, generations: readonly Generation[]): Log {
  const [generation, ...others] = generations as [Generation, ...Generation[]];
  try {
    return Log.open(deps, { ...options, generation }).log;
  } catch (error) {
    if (others.length === 0 || !isNostosError(error, 'DIRECTORY_FOREIGN')) throw error;
    return openIn(deps, options, others);
  }
}

function endsElsewhere({ generation, term, lsn }: ChainPoint, fork: ChainPoint): NostosError {
  return new NostosError(
    'INVALID_ARGUMENT',
    `A generation was to begin behind record ${fork.lsn} of term ${fork.term}, but the log ends with record ${lsn} of term ${term}`,
    { details: { generation, term, lsn } },
  );
}
