/** `/v1`: which request is which operation. `:tenant` names are decoded, checked by the node, and never used as paths. */
import { parsePosition } from '../../base/brands.ts';
import { NostosError } from '../../base/errors.ts';
import type { OperationName } from '../operations.ts';

export interface RequestParts {
  readonly tenant: string;
  readonly query: Readonly<Record<string, string | undefined>>;
  /** An object, decoded from JSON; empty where the request has none. */
  readonly body: Readonly<Record<string, unknown>>;
}

export interface Route {
  readonly method: 'GET' | 'POST' | 'DELETE';
  readonly path: string;
  readonly operation: OperationName;
  readonly input: (request: RequestParts) => Readonly<Record<string, unknown>>;
  /** Of a stream: its `from` for a reader whose last event had this id. */
  readonly after?: (eventId: string) => unknown;
}

function optionalNumber(name: string, text: string | undefined): number | undefined {
  if (text === undefined) return undefined;
  if (!/^\d{1,15}$/.test(text))
    throw new NostosError('INVALID_ARGUMENT', `?${name}= takes a whole number, got ${JSON.stringify(text)}`);
  return Number(text);
}

function flag(name: string, text: string | undefined): boolean {
  if (text === undefined || text === 'false') return false;
  if (text === 'true' || text === '') return true;
  throw new NostosError('INVALID_ARGUMENT', `?${name}= takes true or false, got ${JSON.stringify(text)}`);
}

export const ROUTES: readonly Route[] = [
  { method: 'GET', path: '/v1/status', operation: 'status', input: () => ({}) },
  {
    method: 'GET',
    path: '/v1/tenants',
    operation: 'tenant.list',
    input: ({ query }) => ({ after: query['after'], limit: optionalNumber('limit', query['limit']) }),
  },
  {
    method: 'POST',
    path: '/v1/tenants',
    operation: 'tenant.create',
    input: ({ body: { name, ...rest } }) => ({ tenant: name, ...rest }),
  },
  { method: 'GET', path: '/v1/tenants/:tenant', operation: 'tenant.status', input: ({ tenant }) => ({ tenant }) },
  { method: 'DELETE', path: '/v1/tenants/:tenant', operation: 'tenant.drop', input: ({ tenant }) => ({ tenant }) },
  {
    method: 'POST',
    path: '/v1/tenants/:tenant/query',
    operation: 'sql.query',
    input: ({ tenant, body }) => ({ ...body, tenant }),
  },
  {
    method: 'POST',
    path: '/v1/tenants/:tenant/execute',
    operation: 'sql.execute',
    input: ({ tenant, body }) => ({ ...body, tenant }),
  },
  {
    method: 'POST',
    path: '/v1/tenants/:tenant/migrate',
    operation: 'migrate',
    input: ({ tenant, body }) => ({ ...body, tenant }),
  },
  {
    method: 'GET',
    path: '/v1/tenants/:tenant/changes',
    operation: 'changes',
    input: ({ tenant, query }) => ({ tenant, from: query['from'], follow: flag('follow', query['follow']) }),
    after: (eventId) => eventId,
  },
  { method: 'POST', path: '/v1/migrate', operation: 'migrate.all', input: ({ body }) => body },
  { method: 'POST', path: '/v1/verify', operation: 'verify', input: ({ body }) => body },
  {
    method: 'GET',
    path: '/v1/log',
    operation: 'log',
    input: ({ query }) => ({
      from: optionalNumber('from', query['from']),
      to: optionalNumber('to', query['to']),
      tenant: query['tenant'],
      limit: optionalNumber('limit', query['limit']),
      follow: flag('follow', query['follow']),
    }),
    after: (eventId) => parsePosition(eventId).lsn + 1,
  },
];
