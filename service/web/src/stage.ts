/** The picture: one canvas, on which each panel draws its robot, the clip's ghost, contact forces and the floor. */

import {
  AlwaysDepth,
  BufferAttribute,
  BufferGeometry,
  type Camera,
  Color,
  ColorManagement,
  CustomBlending,
  DataTexture,
  EqualStencilFunc,
  FloatType,
  GLSL3,
  IncrementStencilOp,
  LessEqualDepth,
  Matrix4,
  Mesh,
  NearestFilter,
  OneFactor,
  OneMinusSrcAlphaFactor,
  RawShaderMaterial,
  RGBAFormat,
  SrcAlphaFactor,
  Scene as ThreeScene,
  Vector2,
  Vector3,
  WebGLRenderer,
} from "three";
import { Orbit } from "./camera.js";
import {
  buildSurface,
  COARSE,
  type Detail,
  DISTANT,
  DISTANT_OUTLINE,
  FINE,
  OUTLINE,
  ROUGH,
  type Surface,
} from "./geometry.js";
import { Kinematics } from "./kinematics.js";
import type { Scene } from "./scene.js";
import {
  ARROW_FRAGMENT,
  ARROW_VERTEX,
  DEPTH_FRAGMENT,
  DEPTH_VERTEX,
  FLOOR_FRAGMENT,
  FLOOR_VERTEX,
  GHOST_FRAGMENT,
  SHADOW_FRAGMENT,
  SHADOW_VERTEX,
  SURFACE_FRAGMENT,
  SURFACE_VERTEX,
} from "./shaders.js";
import { readTheme, type Theme } from "./theme_colours.js";

// Colours are those of the style sheet as they are; nothing here is lit physically.
ColorManagement.enabled = false;

const UNIFORMS_BESIDES = 24; // vectors that a vertex shader needs beside the bodies
const MANY_PANELS = 4; // from which on robots are small
const SLOW_MS = 30; // a frame that takes longer on average costs resolution
const FAST_MS = 18;
const FAST_BATCHES = 8; // of 24 frames, before more pixels are tried again
const SCALES = [1, 0.8, 0.65, 0.5];
const REFINE_MS = 120; // between two steps in which surfaces become better
const STILL_MS = 180; // after which a picture that stands still is drawn in full

type Uniforms = Record<string, { value: unknown }>;

export interface PanelState {
  readonly qpos: ArrayLike<number> | null;
  readonly ghost: ArrayLike<number> | null;
  /** N, on each contact channel. */
  readonly loads: ArrayLike<number> | null;
}

export class Stage {
  readonly orbit: Orbit;
  private readonly renderer: WebGLRenderer;
  private readonly panels: Panel[] = [];
  private readonly isSoftware: boolean;
  private readonly observer: ResizeObserver;
  private readonly abort = new AbortController();
  private shared: SharedParts | null = null;
  private theme: Theme;
  private scaleIndex = 0;
  private fastBatches = 0;
  private pending = 0;
  private stillTimer = 0;
  private lastDraw = 0;
  private intervals: number[] = [];
  private isMoving = false;
  private isStale = true;
  private hasDrawn = false;
  private onFrame: ((now: number) => void) | null = null;

  /**
   * Makes the context, which takes a while and needs no robot yet.
   *
   * @param canvas lies over the panels' elements and is as large as their common box.
   * @param onFirstPicture is called once, when the robot is on the screen.
   * Throws where the browser has no WebGL 2.
   */
  constructor(
    private readonly canvas: HTMLCanvasElement,
    private readonly onFirstPicture: () => void,
  ) {
    const context = canvas.getContext("webgl2", {
      alpha: false,
      // Costs a software renderer four times the pixels. Pictures are smoothed by more pixels, when there is time for them.
      antialias: false,
      stencil: true,
      powerPreference: "high-performance",
    });
    if (context === null) throw new Error("this browser has no WebGL 2.");
    this.isSoftware = isSoftwareRenderer(context);
    this.renderer = new WebGLRenderer({ canvas, context });
    this.renderer.debug.checkShaderErrors = false; // would wait for the compiler
    this.renderer.autoClear = false;
    this.theme = readTheme(canvas);
    this.orbit = new Orbit(canvas, () => this.invalidate());
    this.observer = new ResizeObserver(() => this.invalidate());
    this.observer.observe(canvas);
    const options = { signal: this.abort.signal, passive: true };
    canvas.addEventListener("webglcontextrestored", () => this.invalidate(), options);
    // Panels outside the window are not drawn.
    window.addEventListener("scroll", () => this.invalidate(), options);
  }

  /** Builds the robot, and a panel in the box of each element. */
  open(scene: Scene, elements: readonly HTMLElement[]): readonly Panel[] {
    const vectors = this.renderer.getContext().getParameter(WebGL2RenderingContext.MAX_VERTEX_UNIFORM_VECTORS);
    const shared = new SharedParts(scene, this.theme, {
      vectors: vectors as number,
      isMany: elements.length >= MANY_PANELS,
      isSoftware: this.isSoftware,
    });
    this.shared = shared;
    // Small multiples have their captions above the robot.
    const isSingle = elements.length === 1;
    this.orbit.reach = (isSingle ? 0.62 : 0.72) * shared.stature;
    for (const element of elements) {
      this.panels.push(
        new Panel(element, scene, shared, (isSingle ? 0.5 : 0.6) * shared.stature, () => this.invalidate()),
      );
      this.observer.observe(element);
    }
    return this.panels;
  }

  /** Says what to do before each picture while something moves. */
  animate(onFrame: (now: number) => void): void {
    this.onFrame = onFrame;
  }

  /** While this is set pictures are drawn one after the other, and resolution gives way to speed. */
  setMoving(isMoving: boolean): void {
    this.isMoving = isMoving;
    this.intervals = [];
    this.lastDraw = 0;
    this.invalidate();
  }

  /** Draws a picture soon: something has changed. */
  invalidate(): void {
    this.isStale = true;
    this.schedule(false);
  }

  private schedule(isStill: boolean): void {
    if (this.pending === 0) this.pending = requestAnimationFrame((now) => this.draw(now, isStill));
  }

  /** Reads the colours of the page again. */
  updateTheme(): void {
    this.theme = readTheme(this.canvas);
    this.shared?.setTheme(this.theme);
    this.invalidate();
  }

  /** Builds the better surfaces, one after the other, so that the page answers in between. */
  refine(): void {
    if (!this.shared?.refine()) return;
    this.invalidate();
    window.setTimeout(() => this.refine(), REFINE_MS);
  }

  close(): void {
    cancelAnimationFrame(this.pending);
    clearTimeout(this.stillTimer);
    this.observer.disconnect();
    this.abort.abort();
    this.orbit.close();
    this.renderer.dispose();
  }

  private draw(now: number, isStill: boolean): void {
    this.pending = 0;
    clearTimeout(this.stillTimer);
    if (this.isMoving) {
      this.adaptScale(now);
      this.onFrame?.(now);
      // The clock goes on also where the frame is still the same.
      this.schedule(false);
    }
    if (this.isStale || isStill) this.render(isStill);
    this.isStale = false;
    // A still picture is drawn again in full: all pixels, all triangles.
    if (!this.isMoving && !isStill) this.stillTimer = window.setTimeout(() => this.schedule(true), STILL_MS);
  }

  private adaptScale(now: number): void {
    if (this.lastDraw > 0) this.intervals.push(now - this.lastDraw);
    this.lastDraw = now;
    if (this.intervals.length < 24) return;
    const mean = this.intervals.reduce((sum, interval) => sum + interval, 0) / this.intervals.length;
    this.intervals = [];
    this.fastBatches = mean < FAST_MS ? this.fastBatches + 1 : 0;
    if (mean > SLOW_MS && this.scaleIndex + 1 < SCALES.length) this.scaleIndex++;
    else if (this.fastBatches >= FAST_BATCHES && this.scaleIndex > 0) {
      this.scaleIndex--;
      this.fastBatches = 0;
    }
  }

  private render(isStill: boolean): void {
    const { renderer, canvas } = this;
    const box = canvas.getBoundingClientRect();
    const isVisible = box.width >= 1 && box.bottom > 0 && box.top < window.innerHeight;
    if (!isVisible || !this.panels.some((panel) => panel.isPlaced)) return;
    // Twice the pixels of the screen smooth the edges: always on a GPU, otherwise in still pictures.
    const full = this.isSoftware ? Math.min(window.devicePixelRatio, 2) : 2;
    const ratio = isStill ? 2 : full * SCALES[this.scaleIndex]!;
    renderer.setPixelRatio(ratio);
    renderer.setSize(box.width, box.height, false);
    renderer.setClearColor(this.theme.card, 1);
    renderer.setScissorTest(false);
    renderer.clear();
    renderer.setScissorTest(true);
    const isFine = isStill || !this.isSoftware;
    for (const panel of this.panels) {
      const place = panel.element.getBoundingClientRect();
      if (place.width < 1 || place.bottom < 0 || place.top > window.innerHeight) continue;
      const left = place.left - box.left;
      const bottom = box.bottom - place.bottom;
      renderer.setViewport(left, bottom, place.width, place.height);
      renderer.setScissor(left, bottom, place.width, place.height);
      renderer.setClearColor(this.theme.stage, 1);
      renderer.clear();
      this.orbit.aim(panel.target, place.width / place.height);
      panel.render(renderer, this.orbit.camera, isFine);
    }
    if (!this.hasDrawn) {
      this.hasDrawn = true;
      this.onFirstPicture();
    }
  }
}

/** What all panels draw with. */
class SharedParts {
  robot: BufferGeometry;
  /** For the ghost and the shadow, which come after the first picture. */
  outline: BufferGeometry | null = null;
  fine: BufferGeometry | null = null;
  /** m, from the lowest to the highest point of the robot in its reference pose. */
  readonly stature: number;
  /** Whether the places of the bodies fit into uniforms. */
  readonly hasUniforms: boolean;
  readonly floor: BufferGeometry;
  readonly arrow: BufferGeometry;
  private readonly steps: (() => void)[];
  readonly colours = {
    rim: { value: new Color() },
    background: { value: new Color() },
    ground: { value: new Color() },
    line: { value: new Color() },
    ghost: { value: new Color() },
    force: { value: new Color() },
    darkness: { value: 0.3 },
  };

  constructor(
    private readonly scene: Scene,
    theme: Theme,
    { vectors, isMany, isSoftware }: { vectors: number; isMany: boolean; isSoftware: boolean },
  ) {
    const isDistant = isMany && isSoftware;
    this.steps = [
      () => {
        this.outline = this.build(isDistant ? DISTANT_OUTLINE : OUTLINE);
      },
      () => {
        this.robot.dispose();
        this.robot = this.build(isDistant ? DISTANT : COARSE);
      },
    ];
    if (!isDistant) {
      this.steps.push(() => {
        this.fine = this.build(FINE);
      });
    }
    this.hasUniforms = 3 * scene.parents.length + UNIFORMS_BESIDES <= vectors;
    const surface = buildSurface(scene, ROUGH);
    this.robot = toGeometry(surface);
    this.stature = measureStature(scene, surface);
    this.floor = new BufferGeometry();
    this.floor.setAttribute(
      "position",
      new BufferAttribute(Float32Array.of(-1, -1, 0, 1, -1, 0, 1, 1, 0, -1, 1, 0), 3),
    );
    this.floor.setIndex([0, 1, 2, 0, 2, 3]);
    this.arrow = buildArrow();
    this.setTheme(theme);
  }

  /** Builds the next better surface; returns whether there was one left to build. */
  refine(): boolean {
    const step = this.steps.shift();
    step?.();
    return step !== undefined;
  }

  private build(detail: Detail): BufferGeometry {
    return toGeometry(buildSurface(this.scene, detail));
  }

  setTheme(theme: Theme): void {
    this.colours.rim.value.copy(theme.rim);
    this.colours.background.value.copy(theme.stage);
    this.colours.ground.value.copy(theme.ground);
    this.colours.line.value.copy(theme.grid);
    this.colours.ghost.value.copy(theme.ghost);
    this.colours.force.value.copy(theme.force);
    this.colours.darkness.value = theme.isDark ? 0.45 : 0.22;
  }
}

export class Panel {
  /** m, what the camera looks at. */
  readonly target = new Vector3();
  private readonly robot: Figure;
  private readonly ghost: Figure;
  private readonly surface: Mesh;
  private readonly outlined: readonly Mesh[];
  private readonly viewProjection = { value: new Matrix4() };
  private readonly three = new ThreeScene();
  private readonly floor: Mesh;
  private readonly arrows: Arrow[];
  private readonly dimming = { value: 0 };
  private readonly shadow: Mesh;
  private hasGhost = false;
  private follows = true;
  private mustCentre = true;
  /** Whether a robot has been shown. */
  isPlaced = false;
  private readonly rootHeight: number;

  /** @param lookAt m above the floor, the height that the camera looks at. */
  constructor(
    readonly element: HTMLElement,
    private readonly scene: Scene,
    private readonly shared: SharedParts,
    private readonly lookAt: number,
    private readonly onChange: () => void,
  ) {
    const { colours } = shared;
    const { height, radius } = scene.meta;
    this.rootHeight = height;
    this.three.matrixWorldAutoUpdate = false;
    this.robot = new Figure(scene, shared.hasUniforms);
    this.ghost = new Figure(scene, shared.hasUniforms);
    const { viewProjection } = this;
    this.surface = this.robot.add(shared.robot, SURFACE_VERTEX, SURFACE_FRAGMENT, {
      viewProjection,
      setBack: { value: 0 },
      rim: colours.rim,
      background: colours.background,
      dimming: this.dimming,
    });
    const { darkness } = colours;
    const shadow = this.robot.add(shared.robot, SHADOW_VERTEX, SHADOW_FRAGMENT, { viewProjection, darkness });
    Object.assign(shadow.material as RawShaderMaterial, {
      transparent: true,
      depthWrite: false,
      polygonOffset: true,
      polygonOffsetFactor: -1,
      polygonOffsetUnits: -2,
      // Each pixel is darkened once, however many triangles fall on it.
      stencilWrite: true,
      stencilFunc: EqualStencilFunc,
      stencilRef: 0,
      stencilZPass: IncrementStencilOp,
    });
    const setBack = { value: 0.028 * height };
    // The ghost's depth goes first, so that of its surfaces only the nearest is blended.
    const depth = this.ghost.add(shared.robot, DEPTH_VERTEX, DEPTH_FRAGMENT, { viewProjection, setBack });
    Object.assign(depth.material as RawShaderMaterial, { colorWrite: false, transparent: true });
    const tint = colours.ghost;
    const veil = this.ghost.add(shared.robot, SURFACE_VERTEX, GHOST_FRAGMENT, { viewProjection, setBack, tint });
    Object.assign(veil.material as RawShaderMaterial, {
      transparent: true,
      depthWrite: false,
      depthFunc: LessEqualDepth,
      blending: CustomBlending,
      blendSrc: SrcAlphaFactor,
      blendDst: OneMinusSrcAlphaFactor,
      blendSrcAlpha: OneFactor,
    });
    const spacing = [2, 1, 0.5, 0.25, 0.1, 0.05].find((step) => step < height * 0.8) ?? 0.02;
    this.floor = new Mesh(
      shared.floor,
      buildMaterial(FLOOR_VERTEX, FLOOR_FRAGMENT, {
        viewProjection,
        centre: { value: new Vector2() },
        extent: { value: radius * 9 },
        spacing: { value: spacing },
        background: colours.background,
        ground: colours.ground,
        line: colours.line,
      }),
    );
    this.arrows = scene.meta.channels.map(
      () => new Arrow(shared.arrow, { viewProjection, tint: colours.force }, height * 0.035),
    );
    this.shadow = shadow;
    this.outlined = [shadow, depth, veil];
    [this.surface, this.floor, shadow, depth, veil].forEach((mesh, order) => {
      mesh.renderOrder = order;
      mesh.frustumCulled = false;
      this.three.add(mesh);
    });
    for (const { mesh } of this.arrows) {
      mesh.renderOrder = 9;
      this.three.add(mesh);
    }
    this.robot.show(false);
    this.ghost.show(false);
  }

  /** Whether the camera goes with the robot. */
  setFollowing(follows: boolean): void {
    this.follows = follows;
    this.mustCentre ||= follows;
    this.onChange();
  }

  /** @param amount 0 … 1, of a robot whose rollout has ended. */
  setDimming(amount: number): void {
    this.dimming.value = amount;
  }

  /** Shows a state. @param glides whether the camera may lag behind, as it should while playing. */
  show({ qpos, ghost, loads }: PanelState, glides: boolean): void {
    this.robot.show(qpos !== null);
    this.hasGhost = ghost !== null;
    if (qpos !== null) this.robot.pose(qpos);
    if (ghost !== null) this.ghost.pose(ghost);
    this.placeArrows(qpos === null ? null : loads);
    if (qpos !== null) this.moveTarget(glides);
    this.onChange();
  }

  /** rad, the heading of the robot as it is shown. */
  get heading(): number {
    const [w, x, y, z] = this.robot.kinematics.quat.subarray(4 * this.scene.meta.root_body) as unknown as number[];
    return Math.atan2(2 * (w! * z! + x! * y!), 1 - 2 * (y! * y! + z! * z!));
  }

  render(renderer: WebGLRenderer, camera: Camera, isFine: boolean): void {
    this.surface.geometry = (isFine && this.shared.fine) || this.shared.robot;
    const { outline } = this.shared;
    this.shadow.visible = outline !== null && this.surface.visible;
    this.ghost.show(outline !== null && this.hasGhost && !this.isGhostInFront(camera));
    if (outline !== null) for (const mesh of this.outlined) mesh.geometry = outline;
    this.viewProjection.value.multiplyMatrices(camera.projectionMatrix, camera.matrixWorldInverse);
    const { centre } = (this.floor.material as RawShaderMaterial).uniforms;
    centre!.value.set(this.target.x, this.target.y);
    renderer.render(this.three, camera);
  }

  /** Whether the ghost has come so near to the camera that it would hide the robot. */
  private isGhostInFront(camera: Camera): boolean {
    const root = 3 * this.scene.meta.root_body;
    const distance = camera.position.distanceTo(this.target);
    return camera.position.distanceTo(new Vector3().fromArray(this.ghost.kinematics.pos, root)) < 0.62 * distance;
  }

  private moveTarget(glides: boolean): void {
    const root = 3 * this.scene.meta.root_body;
    const x = this.robot.kinematics.pos[root]!;
    const y = this.robot.kinematics.pos[root + 1]!;
    const gap = Math.hypot(x - this.target.x, y - this.target.y);
    if (!this.mustCentre && !this.follows) return;
    // While playing the camera does not take part in every sway.
    const share = this.mustCentre || !glides || gap > this.rootHeight ? 1 : 0.12;
    this.target.x += share * (x - this.target.x);
    this.target.y += share * (y - this.target.y);
    this.target.z = this.lookAt;
    this.mustCentre = false;
    this.isPlaced = true;
  }

  private placeArrows(loads: ArrayLike<number> | null): void {
    const { meta, soles } = this.scene;
    const point = { x: 0, y: 0, z: 0 };
    this.arrows.forEach((arrow, channel) => {
      const load = loads?.[channel] ?? 0;
      const sole = soles[channel];
      const isLoaded = load > 0.01 * meta.weight_n && sole !== undefined && sole.points.length > 0;
      arrow.mesh.visible = isLoaded;
      if (!isLoaded) return;
      const { points, body } = sole;
      let lowest = Number.POSITIVE_INFINITY;
      for (let i = 0; i < points.length; i += 3) {
        this.robot.kinematics.transform(body, points[i]!, points[i + 1]!, points[i + 2]!, point);
        lowest = Math.min(lowest, point.z);
      }
      // The middle of all corners that are about as low as the lowest.
      let count = 0;
      arrow.origin.set(0, 0, 0);
      for (let i = 0; i < points.length; i += 3) {
        this.robot.kinematics.transform(body, points[i]!, points[i + 1]!, points[i + 2]!, point);
        if (point.z > lowest + 0.008 * meta.height) continue;
        arrow.origin.x += point.x;
        arrow.origin.y += point.y;
        arrow.origin.z += point.z;
        count++;
      }
      arrow.origin.multiplyScalar(1 / count);
      arrow.setLength((load / meta.weight_n) * 0.5 * meta.height);
    });
  }
}

/** A robot in one pose. Its meshes share the places of its bodies: of each the three rows of its matrix. */
class Figure {
  readonly kinematics: Kinematics;
  private readonly meshes: Mesh[] = [];
  private readonly places: Float32Array;
  private readonly texture: DataTexture | null = null;

  constructor(
    private readonly scene: Scene,
    hasUniforms: boolean,
  ) {
    this.kinematics = new Kinematics(scene);
    const bodies = scene.parents.length;
    this.places = new Float32Array(12 * bodies);
    if (hasUniforms) return;
    this.texture = new DataTexture(this.places, 3, bodies, RGBAFormat, FloatType);
    this.texture.minFilter = NearestFilter;
    this.texture.magFilter = NearestFilter;
  }

  add(geometry: BufferGeometry, vertex: string, fragment: string, uniforms: Uniforms): Mesh {
    const bodies = { value: this.texture ?? this.places };
    const defines = this.texture === null ? { BODIES: this.scene.parents.length } : {};
    const mesh = new Mesh(geometry, buildMaterial(vertex, fragment, { ...uniforms, bodies }, defines));
    this.meshes.push(mesh);
    return mesh;
  }

  show(isVisible: boolean): void {
    for (const mesh of this.meshes) mesh.visible = isVisible;
  }

  pose(qpos: ArrayLike<number>): void {
    this.kinematics.pose(qpos);
    const { pos, quat } = this.kinematics;
    const { places } = this;
    for (let body = 0; 12 * body < places.length; body++) {
      const w = quat[4 * body]!;
      const x = quat[4 * body + 1]!;
      const y = quat[4 * body + 2]!;
      const z = quat[4 * body + 3]!;
      const at = 12 * body;
      places[at] = 1 - 2 * (y * y + z * z);
      places[at + 1] = 2 * (x * y - w * z);
      places[at + 2] = 2 * (x * z + w * y);
      places[at + 3] = pos[3 * body]!;
      places[at + 4] = 2 * (x * y + w * z);
      places[at + 5] = 1 - 2 * (x * x + z * z);
      places[at + 6] = 2 * (y * z - w * x);
      places[at + 7] = pos[3 * body + 1]!;
      places[at + 8] = 2 * (x * z - w * y);
      places[at + 9] = 2 * (y * z + w * x);
      places[at + 10] = 1 - 2 * (x * x + y * y);
      places[at + 11] = pos[3 * body + 2]!;
    }
    if (this.texture !== null) this.texture.needsUpdate = true;
  }
}

class Arrow {
  readonly mesh: Mesh;
  readonly origin = new Vector3();
  private readonly length = { value: 0 };

  constructor(geometry: BufferGeometry, uniforms: Uniforms, size: number) {
    const place = { origin: { value: this.origin }, length_: this.length, scale: { value: size } };
    const material = buildMaterial(ARROW_VERTEX, ARROW_FRAGMENT, { ...uniforms, ...place });
    // A force is read through the leg that it acts on.
    Object.assign(material, { depthFunc: AlwaysDepth, depthWrite: false, transparent: true });
    this.mesh = new Mesh(geometry, material);
    this.mesh.frustumCulled = false;
    this.mesh.visible = false;
  }

  setLength(length: number): void {
    this.length.value = length;
  }
}

function buildMaterial(
  vertexShader: string,
  fragmentShader: string,
  uniforms: Uniforms,
  defines: Record<string, number> = {},
): RawShaderMaterial {
  return new RawShaderMaterial({ glslVersion: GLSL3, vertexShader, fragmentShader, uniforms, defines });
}

function toGeometry({ place, normal, colour, index }: Surface): BufferGeometry {
  const geometry = new BufferGeometry();
  geometry.setAttribute("place", new BufferAttribute(place, 4));
  geometry.setAttribute("normal", new BufferAttribute(normal, 4, true));
  geometry.setAttribute("colour", new BufferAttribute(colour, 4, true));
  geometry.setIndex(new BufferAttribute(index, 1));
  return geometry;
}

function measureStature(scene: Scene, { place }: Surface): number {
  const kinematics = new Kinematics(scene);
  kinematics.pose(scene.qpos0);
  const point = { x: 0, y: 0, z: 0 };
  let low = Number.POSITIVE_INFINITY;
  let high = Number.NEGATIVE_INFINITY;
  for (let i = 0; i < place.length; i += 4) {
    const body = place[i + 3]!;
    // What stands on the world's body is no part of the robot.
    if (body === 0) continue;
    kinematics.transform(body, place[i]!, place[i + 1]!, place[i + 2]!, point);
    low = Math.min(low, point.z);
    high = Math.max(high, point.z);
  }
  return high > low ? high - low : 2 * scene.meta.height;
}

/** The arrow that `ARROW_VERTEX` stretches: a shaft from 0 to 1, and a head whose base is at 2 and whose tip is at 3. */
function buildArrow(): BufferGeometry {
  const steps = 12;
  const points: number[] = [];
  const normals: number[] = [];
  const index: number[] = [];
  const ring = (radius: number, z: number, slope: number) => {
    const first = points.length / 3;
    for (let i = 0; i < steps; i++) {
      const angle = (2 * Math.PI * i) / steps;
      points.push(radius * Math.cos(angle), radius * Math.sin(angle), z);
      normals.push(Math.cos(angle), Math.sin(angle), slope);
    }
    return first;
  };
  const join = (low: number, high: number) => {
    for (let i = 0; i < steps; i++) {
      const next = (i + 1) % steps;
      index.push(low + i, low + next, high + i, low + next, high + next, high + i);
    }
  };
  join(ring(0.32, 0, 0), ring(0.32, 1, 0));
  join(ring(0.05, 2, -1), ring(0.85, 2, -1));
  join(ring(0.85, 2, 0.4), ring(0.01, 3, 0.4));
  const geometry = new BufferGeometry();
  geometry.setAttribute("position", new BufferAttribute(Float32Array.from(points), 3));
  geometry.setAttribute("normal", new BufferAttribute(Float32Array.from(normals), 3));
  geometry.setIndex(index);
  return geometry;
}

function isSoftwareRenderer(context: WebGL2RenderingContext): boolean {
  const info = context.getExtension("WEBGL_debug_renderer_info");
  const name = String(context.getParameter(info === null ? context.RENDERER : info.UNMASKED_RENDERER_WEBGL));
  return /swiftshader|llvmpipe|softpipe|software|basic render/i.test(name);
}
