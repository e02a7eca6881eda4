import { crash } from './crash.ts';
import type { TourPart } from './part.ts';

/** In the order in which the tour shows them. */
export const PARTS: readonly TourPart[] = [crash];
