/** The directory that `nostos certs node` fills: what a node shows to others, and whom it believes. */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { NostosError } from '../base/errors.ts';
import type { TlsIdentity } from './tls-identity.ts';

export const TLS_FILES = { ca: 'ca.crt', cert: 'node.crt', key: 'node.key' } as const;

export async function readTlsIdentity(dir: string): Promise<TlsIdentity> {
  const read = async (name: string): Promise<string> => {
    try {
      return await readFile(join(dir, name), 'utf8');
    } catch (error) {
      throw new NostosError('INVALID_ARGUMENT', `${join(dir, name)} cannot be read; nostos certs node makes it`, {
        cause: error,
      });
    }
  };
  const [ca, cert, key] = await Promise.all([read(TLS_FILES.ca), read(TLS_FILES.cert), read(TLS_FILES.key)]);
  return { ca, cert, key };
}
