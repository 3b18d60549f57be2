/** A camera that orbits a point above the floor, moved by mouse, touch and keys. z is up. */

import { PerspectiveCamera, Vector3 } from "three";

const FIELD_OF_VIEW = 32; // degrees
const LOWEST = 0.03; // rad above the floor, which is seen from above alone
const HIGHEST = Math.PI / 2 - 0.01;

export interface View {
  /** rad about z, from x; where the camera stands as seen from its target. */
  azimuth: number;
  elevation: number;
  /** 1 shows the whole robot. */
  distance: number;
}

export class Orbit {
  readonly camera = new PerspectiveCamera(FIELD_OF_VIEW, 1, 0.05, 100);
  readonly view: View = { azimuth: 0.6, elevation: 0.2, distance: 1 };
  /** m, by which the user has moved the target. */
  readonly shift = new Vector3();
  private home: View = { ...this.view };
  private readonly abort = new AbortController();
  private readonly pointers = new Map<number, { x: number; y: number }>();

  /** m, how far the robot reaches from the target. */
  reach = 1;

  constructor(
    private readonly element: HTMLElement,
    private readonly onChange: () => void,
  ) {
    this.camera.up.set(0, 0, 1);
    const options = { signal: this.abort.signal };
    element.style.touchAction = "pan-y";
    element.addEventListener("pointerdown", (event) => this.press(event), options);
    element.addEventListener("pointermove", (event) => this.drag(event), options);
    for (const type of ["pointerup", "pointercancel", "lostpointercapture"] as const) {
      element.addEventListener(type, (event) => this.pointers.delete(event.pointerId), options);
    }
    element.addEventListener("wheel", (event) => this.turnWheel(event), { ...options, passive: false });
    element.addEventListener("contextmenu", (event) => event.preventDefault(), options);
    element.addEventListener("dblclick", () => this.reset(), options);
  }

  close(): void {
    this.abort.abort();
  }

  /** Makes a view the one that `reset` returns to, and takes it. */
  setHome(view: View): void {
    this.home = { ...view };
    this.reset();
  }

  reset(): void {
    Object.assign(this.view, this.home);
    this.shift.set(0, 0, 0);
    this.onChange();
  }

  look(view: Partial<View>): void {
    Object.assign(this.view, view);
    this.clamp();
    this.onChange();
  }

  turn(azimuth: number, elevation: number): void {
    this.look({ azimuth: this.view.azimuth + azimuth, elevation: this.view.elevation + elevation });
  }

  zoom(factor: number): void {
    this.look({ distance: this.view.distance * factor });
  }

  /** Puts the camera before its target, for a panel of this shape. */
  aim(target: Vector3, aspect: number): void {
    const { azimuth, elevation } = this.view;
    const half = Math.tan((FIELD_OF_VIEW * Math.PI) / 360) * Math.min(1, aspect);
    const distance = (this.view.distance * this.reach) / Math.sin(Math.atan(half));
    const flat = Math.cos(elevation) * distance;
    const { camera } = this;
    camera.position.set(
      target.x + this.shift.x + flat * Math.cos(azimuth),
      target.y + this.shift.y + flat * Math.sin(azimuth),
      target.z + this.shift.z + Math.sin(elevation) * distance,
    );
    camera.lookAt(target.x + this.shift.x, target.y + this.shift.y, target.z + this.shift.z);
    camera.aspect = aspect;
    camera.near = distance * 0.05;
    camera.far = distance + this.reach * 40;
    camera.updateProjectionMatrix();
    camera.updateMatrixWorld();
  }

  private clamp(): void {
    this.view.elevation = Math.min(HIGHEST, Math.max(LOWEST, this.view.elevation));
    this.view.distance = Math.min(6, Math.max(0.15, this.view.distance));
  }

  private press(event: PointerEvent): void {
    this.element.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
  }

  private drag(event: PointerEvent): void {
    const last = this.pointers.get(event.pointerId);
    if (last === undefined) return;
    const dx = event.clientX - last.x;
    const dy = event.clientY - last.y;
    if (this.pointers.size === 2) {
      const [a, b] = [...this.pointers.values()] as [{ x: number; y: number }, { x: number; y: number }];
      const before = Math.hypot(a.x - b.x, a.y - b.y);
      this.pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
      const [c, d] = [...this.pointers.values()] as [{ x: number; y: number }, { x: number; y: number }];
      const after = Math.hypot(c.x - d.x, c.y - d.y);
      this.pan(dx / 2, dy / 2);
      if (after > 1) this.zoom(before / after);
      return;
    }
    this.pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    if (event.buttons & 2 || event.buttons & 4 || event.shiftKey) this.pan(dx, dy);
    else this.turn(-dx * 0.008, dy * 0.008);
  }

  private pan(dx: number, dy: number): void {
    const scale = (2 * this.view.distance * this.reach) / Math.max(1, this.element.clientHeight);
    const { azimuth } = this.view;
    this.shift.x += scale * dx * Math.sin(azimuth);
    this.shift.y -= scale * dx * Math.cos(azimuth);
    this.shift.z += scale * dy;
    this.onChange();
  }

  /** The wheel scrolls the page until the picture has been clicked: a page that cannot be scrolled past is a trap. */
  private turnWheel(event: WheelEvent): void {
    const hasFocus = this.element.contains(document.activeElement);
    if (!event.ctrlKey && !hasFocus) return;
    event.preventDefault();
    this.zoom(Math.exp(Math.max(-60, Math.min(60, event.deltaY)) * (event.ctrlKey ? 0.01 : 0.002)));
  }
}
