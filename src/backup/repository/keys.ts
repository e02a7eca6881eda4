/**
 * Keys of the content of backups. A tenant's content is encrypted with its own key; destroy the key and the content is
 * gone, wherever copies of it lie. A key never leaves as it is: one derived from it encrypts, another one names objects.
 */
import { hkdfSync } from 'node:crypto';
import type { Brand, TenantUuid } from '../../base/brands.ts';

/** 128 random bits as 32 lowercase hex digits. */
export type KeyId = Brand<string, 'KeyId'>;

export interface BackupKey {
  readonly id: KeyId;
  /** 32 random bytes. */
  readonly secret: Uint8Array;
}

export interface KeyProvider {
  /** What new content of this tenant is encrypted with; undefined: it is not encrypted. */
  keyFor(owner: TenantUuid): Promise<BackupKey | undefined>;
  /** Undefined when it is not there, or was destroyed. */
  keyById(id: KeyId): Promise<BackupKey | undefined>;
}

/** Owns what belongs to no tenant: the catalog, and records without one. */
export const NO_TENANT_UUID = '0'.repeat(32) as TenantUuid;

export const noKeys: KeyProvider = {
  keyFor: () => Promise.resolve(undefined),
  keyById: () => Promise.resolve(undefined),
};

export interface DerivedKeys {
  readonly encryption: Uint8Array;
  readonly naming: Uint8Array;
}

const derived = new WeakMap<BackupKey, DerivedKeys>();

export function deriveKeys(key: BackupKey): DerivedKeys {
  const known = derived.get(key);
  if (known !== undefined) return known;
  const derive = (purpose: string) => new Uint8Array(hkdfSync('sha256', key.secret, '', purpose, 32));
  const keys = { encryption: derive('nostos backup encryption 1'), naming: derive('nostos backup naming 1') };
  derived.set(key, keys);
  return keys;
}
