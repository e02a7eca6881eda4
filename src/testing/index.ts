/** Published as `nostos/testing`: time, disks and compliance suites for who writes an adapter or tests an application. */
export { FaultyDisk, PowerCut } from './faulty-disk.ts';
export type { InjectedFault, Step, StepKind } from './faulty-disk.ts';
export { VirtualClock } from './virtual-clock.ts';
export { coordinatorCompliance, directoryEntry, groupRecord, memberEntry } from './coordinator-compliance.ts';
export type {
  CoordinationFactory,
  CoordinatorUnderTest,
  DisturbedNetwork,
  HeldWrite,
} from './coordinator-compliance.ts';
export { startCoordinatorProxy } from './coordinator-proxy.ts';
export type { ProxyOptions } from './coordinator-proxy.ts';
export { backendCompliance } from './backend-compliance.ts';
export type { BackendUnderTest } from './backend-compliance.ts';
export { channelCompliance, COMPLIANCE_FRAME_BYTES_MAX } from './channel-compliance.ts';
export type { ChannelsUnderTest } from './channel-compliance.ts';
export { diskCompliance } from './disk-compliance.ts';
export type { DiskUnderTest } from './disk-compliance.ts';
export { simulateLog } from './log-simulation.ts';
export type { LogSimulation, SimulateOptions } from './log-simulation.ts';
export { simulateGroups } from './group-simulation.ts';
export type { GroupSimulateOptions } from './group-simulation.ts';
export { seededRandom } from '../base/random.ts';
export type { SeededRandom } from '../base/random.ts';
