/** What a restore does with a directory, given what is there and what was asked: pure, and total. */
import { NostosError } from '../../base/errors.ts';
import { sameHistory, type SourceHistory } from './identity.ts';
import type { Marker } from './marker.ts';

export type DirectoryState = 'as-it-was' | Marker['phase'];

export type RestoreEvent =
  /** A source answered, and serves this history. */
  | { readonly kind: 'source'; readonly history: SourceHistory }
  /** Go on with what is there; no source was asked yet. */
  | { readonly kind: 'go-on' }
  | { readonly kind: 'abandon' }
  /** Somebody wants to open the directory as a node. */
  | { readonly kind: 'open' };

export type RestoreDecision =
  /** Ask a source, check the directory against it, write the marker. */
  | 'begin'
  /** Fetch into what an earlier attempt left. */
  | 'resume'
  /** Ask a source first: those that the marker names will do. */
  | 'ask'
  /** Finish the swap; no source is needed. */
  | 'finish'
  /** Remove what was fetched, then the marker. */
  | 'give-up'
  /** Put back what was set aside, unless anything new is in place (`planWayBack`), then give up. */
  | 'go-back'
  | 'open';

export function stateOf(marker: Marker | undefined): DirectoryState {
  return marker === undefined ? 'as-it-was' : marker.phase;
}

export function decide(marker: Marker | undefined, event: RestoreEvent): RestoreDecision {
  if (marker === undefined) {
    if (event.kind === 'source') return 'begin';
    if (event.kind === 'go-on') return 'ask';
    if (event.kind === 'open') return 'open';
    throw new NostosError('INVALID_ARGUMENT', 'there is no unfinished restore to give up; nothing was changed');
  }
  if (event.kind === 'open') throw unfinished(marker);
  if (marker.phase !== 'fetching') {
    if (event.kind !== 'abandon') return 'finish';
    if (marker.phase === 'swapping') return 'go-back';
    throw new NostosError(
      'RESTORE_UNFINISHED',
      'this restore cannot be given up any more: the new state is in place. Run nostos restore once more to finish it; it needs no source',
      { details: { run: marker.run, phase: marker.phase } },
    );
  }
  if (event.kind === 'abandon') return 'give-up';
  if (event.kind === 'go-on') return 'ask';
  if (sameHistory(marker.history, event.history)) return 'resume';
  throw new NostosError(
    'RESTORE_UNFINISHED',
    `an unfinished restore of cluster ${marker.history.cluster}, generation ${marker.history.generation} (from ${marker.sources.join(', ')}) lies here, ` +
      `and this source serves cluster ${event.history.cluster}, generation ${event.history.generation}; give up the first one with --abandon, or go on with its own source`,
    { details: { run: marker.run, begun: marker.history, offered: event.history } },
  );
}

/** Why a directory with a marker opens for nobody. */
export function unfinished(marker: Marker): NostosError {
  const from = marker.sources.map((source) => ` --from ${source}`).join('');
  const how =
    marker.phase === 'fetching'
      ? `finish it (nostos restore --dir <dir>${from}) or give it up (nostos restore --dir <dir> --abandon), which leaves what was there before`
      : marker.phase === 'swapping'
        ? 'finish it with nostos restore --dir <dir>, everything needed is there; or, as long as nothing new is in place, give it up with --abandon'
        : 'finish it with nostos restore --dir <dir>; everything needed is there';
  return new NostosError(
    'RESTORE_UNFINISHED',
    `a restore of this directory, begun ${marker.startedAt}, is unfinished: ${how}`,
    {
      details: { run: marker.run, phase: marker.phase, sources: marker.sources },
    },
  );
}
