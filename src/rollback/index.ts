/** Published as `nostos/rollback`: the reference's rollback of a deposed primary. */
export { RollbackCoordinator } from './reference/coordinator.ts';
export type { RollbackCoordinatorOptions } from './reference/coordinator.ts';
export {
  DivergentTail,
  NodeRole,
  RollbackError,
  RollbackOutcome,
  RollbackPlan,
  TailRecord,
} from './reference/types.ts';
export type { RollbackErrorKind, RollbackEvent, RollbackRequest, RollbackTransport } from './reference/types.ts';
export type { Delivery, NoticeSink } from './run/outbox.ts';
export type { RollbackNotice } from './types.ts';
