export { openNode } from './node/open-node.ts';
export { NostosError, ERROR_CODES, isNostosError, type ErrorCode, type Retry } from './base/errors.ts';
export { DEFAULT_LIMITS, type LimitName } from './base/limits.ts';
export { formatPosition, parsePosition, toLsn } from './base/brands.ts';
export type { Generation, Lsn, Position, TenantId, TenantUuid, Term } from './base/brands.ts';
export { sql } from './store/values.ts';
export type { Int64Mode, Row, RunResult, SqlInput, SqlParameters, SqlStatement, SqlValue } from './store/values.ts';
export type * from './node/types.ts';
