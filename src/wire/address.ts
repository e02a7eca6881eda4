/** `host:port` as people write it: a DNS name, an IPv4 address, or an IPv6 address in brackets. */
import { NostosError } from '../base/errors.ts';

export interface Address {
  readonly host: string;
  readonly port: number;
}

const ADDRESS = /^(?:\[([0-9A-Fa-f.]*:[0-9A-Fa-f:.]*(?:%[\w.-]+)?)\]|([^\s:[\]/@]{1,255})):(\d{1,5})$/;

/** Port 0 is for listening only: the system chooses one. */
export function parseAddress(text: string): Address {
  const match = ADDRESS.exec(text);
  const port = Number(match?.[3]);
  if (match === null || port > 65_535)
    throw new NostosError(
      'INVALID_ARGUMENT',
      `an address reads host:port, or [IPv6]:port, got ${JSON.stringify(text).slice(0, 300)}`,
    );
  return { host: (match[1] ?? match[2])!, port };
}

export function formatAddress({ host, port }: Address): string {
  return host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`;
}

/** Without the form that an IPv4 address has on an IPv6 socket. */
export function plainIp(ip: string): string {
  return ip.replace(/^::ffff:(?=\d+\.)/i, '');
}

/** Of an address that is resolved already: a name may mean anything. */
export function isLoopbackIp(ip: string): boolean {
  return ip === '::1' || /^127(?:\.\d{1,3}){3}$/.test(plainIp(ip));
}
