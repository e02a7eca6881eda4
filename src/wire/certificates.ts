/**
 * A small authority and the certificates of its nodes: P-256 keys, X.509 as `tls-identity.ts` reads it. The authority's
 * key is needed to make certificates only; no node holds it. Loaded by `nostos certs` alone.
 */
import 'reflect-metadata';
import { webcrypto } from 'node:crypto';
import { isIP } from 'node:net';
import {
  AuthorityKeyIdentifierExtension,
  BasicConstraintsExtension,
  cryptoProvider,
  ExtendedKeyUsage,
  ExtendedKeyUsageExtension,
  KeyUsageFlags,
  KeyUsagesExtension,
  PemConverter,
  SubjectAlternativeNameExtension,
  SubjectKeyIdentifierExtension,
  X509Certificate,
  X509CertificateGenerator,
  type JsonGeneralName,
} from '@peculiar/x509';
import { toClusterId, toNodeId } from '../base/brands.ts';
import { NostosError } from '../base/errors.ts';
import { CLUSTER_URI, NODE_URI, parseIds } from './tls-identity.ts';

/** Certificate and private key, PEM. */
export interface KeyPair {
  readonly cert: string;
  readonly key: string;
}

export interface Validity {
  readonly nowMs: number;
  readonly days: number;
}

export interface NodeCertificate {
  readonly node: string;
  /** DNS names and IP addresses under which others reach the node. */
  readonly hosts: readonly string[];
}

type Keys = Awaited<ReturnType<typeof generateKeys>>;

const ALGORITHM = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' } as const;
const DAY_MS = 24 * 60 * 60 * 1000;
/** Clocks of other machines may be behind. */
const BACKDATED_MS = 60 * 60 * 1000;
const DNS_NAME =
  /^(?=.{1,253}$)(?:[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?)(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*$/;

cryptoProvider.set(webcrypto as never);

/** An authority; with a cluster, its certificates are for nodes of that cluster only. */
export async function createAuthority(cluster: string | undefined, validity: Validity): Promise<KeyPair> {
  const keys = await generateKeys();
  const names: JsonGeneralName[] =
    cluster === undefined ? [] : [{ type: 'url', value: `${CLUSTER_URI}${toClusterId(cluster)}` }];
  const cert = await X509CertificateGenerator.createSelfSigned({
    ...period(validity),
    serialNumber: serialNumber(),
    name: [{ CN: [cluster === undefined ? 'Nostos CA' : `Nostos CA of ${cluster.slice(0, 8)}`] }],
    keys,
    signingAlgorithm: ALGORITHM,
    extensions: [
      new BasicConstraintsExtension(true, 0, true),
      new KeyUsagesExtension(KeyUsageFlags.keyCertSign | KeyUsageFlags.cRLSign, true),
      await SubjectKeyIdentifierExtension.create(keys.publicKey),
      ...(names.length === 0 ? [] : [new SubjectAlternativeNameExtension(names)]),
    ],
  });
  return { cert: `${cert.toString('pem')}\n`, key: await exportKey(keys) };
}

/** A certificate for both sides of a connection; the cluster is that of the authority. */
export async function createNodeCertificate(
  authority: KeyPair,
  { node, hosts }: NodeCertificate,
  validity: Validity,
): Promise<KeyPair> {
  const issuer = parseCertificate(authority.cert);
  const cluster = clusterOf(issuer);
  const names: JsonGeneralName[] = [{ type: 'url', value: `${NODE_URI}${toNodeId(node)}` }];
  if (cluster !== undefined) names.push({ type: 'url', value: `${CLUSTER_URI}${cluster}` });
  for (const host of hosts) names.push(hostName(host));
  const keys = await generateKeys();
  const cert = await X509CertificateGenerator.create({
    ...period(validity, issuer.notAfter.getTime()),
    serialNumber: serialNumber(),
    subject: [{ CN: [node] }],
    issuer: issuer.subjectName,
    publicKey: keys.publicKey,
    signingKey: await importKey(authority.key),
    signingAlgorithm: ALGORITHM,
    extensions: [
      new BasicConstraintsExtension(false, undefined, true),
      new KeyUsagesExtension(KeyUsageFlags.digitalSignature, true),
      new ExtendedKeyUsageExtension([ExtendedKeyUsage.serverAuth, ExtendedKeyUsage.clientAuth]),
      new SubjectAlternativeNameExtension(names),
      await SubjectKeyIdentifierExtension.create(keys.publicKey),
      await AuthorityKeyIdentifierExtension.create(issuer.publicKey),
    ],
  });
  if (!(await cert.verify({ publicKey: issuer, signatureOnly: true })))
    throw new NostosError('INVALID_ARGUMENT', 'the key of the authority does not belong to its certificate');
  return { cert: `${cert.toString('pem')}\n`, key: await exportKey(keys) };
}

export interface CertificateSummary {
  readonly node: string | undefined;
  readonly cluster: string | undefined;
  readonly notAfter: string;
}

export function summarize(cert: string): CertificateSummary {
  const certificate = parseCertificate(cert);
  const uris = urisOf(certificate);
  return {
    node: parseIds(uris, NODE_URI)[0],
    cluster: clusterOf(certificate),
    notAfter: certificate.notAfter.toISOString(),
  };
}

function clusterOf(certificate: X509Certificate): string | undefined {
  return parseIds(urisOf(certificate), CLUSTER_URI)[0];
}

function urisOf(certificate: X509Certificate): string[] {
  const names = certificate.getExtension(SubjectAlternativeNameExtension)?.names.items ?? [];
  return names.filter(({ type }) => type === 'url').map(({ value }) => value);
}

function hostName(host: string): JsonGeneralName {
  if (isIP(host) !== 0) return { type: 'ip', value: host };
  if (DNS_NAME.test(host) && !/^[\d.]+$/.test(host)) return { type: 'dns', value: host };
  throw new NostosError(
    'INVALID_ARGUMENT',
    `a host is a DNS name or an IP address without port and brackets, got ${JSON.stringify(host).slice(0, 300)}`,
  );
}

/** A certificate that outlives its authority is of no use. */
function period({ nowMs, days }: Validity, endMaxMs = Infinity): { notBefore: Date; notAfter: Date } {
  if (!(days >= 1 && days <= 36_500))
    throw new NostosError('INVALID_ARGUMENT', `a certificate is valid for 1 to 36500 days, got ${days}`);
  if (nowMs >= endMaxMs)
    throw new NostosError('INVALID_ARGUMENT', 'the authority has expired; make a new one with nostos certs init');
  return { notBefore: new Date(nowMs - BACKDATED_MS), notAfter: new Date(Math.min(nowMs + days * DAY_MS, endMaxMs)) };
}

/** Positive, and 126 random bits of it. */
function serialNumber(): string {
  const bytes = webcrypto.getRandomValues(new Uint8Array(16));
  bytes[0] = (bytes[0]! & 0x3f) | 0x40;
  return Buffer.from(bytes).toString('hex');
}

async function generateKeys() {
  return webcrypto.subtle.generateKey(ALGORITHM, true, ['sign', 'verify']);
}

async function exportKey({ privateKey }: Keys): Promise<string> {
  return `${PemConverter.encode(await webcrypto.subtle.exportKey('pkcs8', privateKey), 'PRIVATE KEY')}\n`;
}

async function importKey(pem: string) {
  try {
    const [der] = PemConverter.decode(pem);
    return await webcrypto.subtle.importKey('pkcs8', der!, ALGORITHM, false, ['sign']);
  } catch (error) {
    throw new NostosError('INVALID_ARGUMENT', 'the key of the authority is no P-256 private key', { cause: error });
  }
}

function parseCertificate(pem: string): X509Certificate {
  try {
    return new X509Certificate(pem);
  } catch (error) {
    throw new NostosError('INVALID_ARGUMENT', 'the certificate of the authority is none', { cause: error });
  }
}
