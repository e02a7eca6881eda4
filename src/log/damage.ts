/** The one way in which the log says that it is damaged: where, and from which record on. Damage is never cut. */
import type { Lsn } from '../base/brands.ts';
import { NostosError } from '../base/errors.ts';

export interface DamagePlace {
  /** File name of the segment, or of the table beside the segments. */
  readonly segment: string;
  readonly offset: number;
  /** The first record that cannot be trusted. */
  readonly lsn: Lsn;
}

export interface Damage extends DamagePlace {
  readonly reason: string;
}

export function logDamaged(damage: Damage): NostosError {
  return new NostosError(
    'LOG_DAMAGED',
    `The log is damaged in ${damage.segment} at byte ${damage.offset}, from LSN ${damage.lsn} on: ${damage.reason}. ` +
      `Nothing was changed; restore this node from a replica or a backup`,
    { details: { ...damage } },
  );
}
