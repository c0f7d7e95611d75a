"use strict";
window.addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((each) => (each.open = true)));

(async () => {
  const part = (name) => document.getElementById("viewer-" + name);
  const packed = document.querySelectorAll("script.volume");
  if (!packed.length) return;
  const state = part("state");
  if (!document.createElement("canvas").getContext("webgl2")) {
    state.textContent = "This browser has no WebGL 2. The pictures below show the same.";
    return;
  }
  const titles = ["prediction", "reference", "difference"];
  const views = { axial: 2, coronal: 1, sagittal: 0 };
  // background, VS, cochlea, only predicted, only in the reference or to be ignored
  const colours = { R: [0, 255, 64, 255, 255], G: [0, 80, 224, 216, 123], B: [0, 80, 255, 77, 240], A: [0, 255, 255, 255, 255], I: [0, 1, 2, 3, 4], labels: ["", "VS", "cochlea", "only predicted", "only in the reference"] };
  const viewer = new niivue.Niivue({ backColor: [0, 0, 0, 1], dragAndDropEnabled: false, isRadiologicalConvention: true, isColorbar: false, loadingText: "", crosshairWidth: 0, crosshairColor: [1, 0.85, 0.3, 0.6], isOrientationTextVisible: true });
  const axis = () => views[part("view").value] ?? 2;
  const count = () => viewer.volumes[0].dimsRAS[axis() + 1];

  function told() {
    const number = Math.min(count(), Math.floor(viewer.scene.crosshairPos[axis()] * count()) + 1);
    part("slice").max = count();
    part("slice").value = number;
    part("number").textContent = number + " of " + count();
    const over = part("overlay").checked && viewer.volumes.length > 1 ? `${method()} ${part("map").value}`.trim() : "none";
    part("canvas").dataset.overlay = over;
    part("canvas").setAttribute("aria-label", `${part("case").selectedOptions[0].textContent}, ${part("view").value}, slice ${number} of ${count()}, overlay: ${over}`);
  }

  function turn() {
    const types = { axial: viewer.sliceTypeAxial, coronal: viewer.sliceTypeCoronal, sagittal: viewer.sliceTypeSagittal, all: viewer.sliceTypeMultiplanar };
    viewer.opts.crosshairWidth = part("view").value === "all" ? 0.5 : 0;
    viewer.setSliceType(types[part("view").value]);
    told();
  }

  function fade() {
    const opacity = part("overlay").checked ? Number(part("opacity").value) : 0;
    for (let index = 1; index < viewer.volumes.length; index++) viewer.setOpacity(index, opacity);
    told();
  }

  let chosen;
  let maps = {};
  const method = () => part("method")?.value ?? "";
  function offer() {
    const before = part("map").value;
    maps = { ...chosen.maps, ...chosen.methods?.[method()] };
    part("map").replaceChildren(...titles.filter((title) => title in maps).map((title) => new Option(title, title)));
    if (before in maps) part("map").value = before;
  }

  async function choose() {
    chosen = JSON.parse(packed[Number(part("case").value)].textContent);
    if (chosen.methods) {
      const before = method();
      part("method").replaceChildren(...Object.keys(chosen.methods).map((title) => new Option(title, title)));
      if (before in chosen.methods) part("method").value = before;
    }
    offer();
    await show(true);
    part("packed").textContent = `For display only: ${chosen.levels} grey levels` + (chosen.step > 1 ? `, every ${chosen.step}th voxel in plane.` : ".");
  }

  async function show(moved) {
    const position = [...viewer.scene.crosshairPos];
    for (const volume of [...viewer.volumes]) viewer.removeVolume(volume);
    const image = await niivue.NVImage.loadFromBase64({ base64: chosen.image, name: "image.nii.gz", cal_min: 0, cal_max: 255, trustCalMinMax: true });
    viewer.addVolume(image);
    const title = part("map").value;
    if (title) {
      const map = await niivue.NVImage.loadFromBase64({ base64: maps[title], name: "map.nii.gz", cal_min: 0, cal_max: 255, trustCalMinMax: true });
      viewer.addVolume(map);
      map.setColormapLabel(colours);
      viewer.updateGLVolume();
    }
    viewer.scene.crosshairPos = moved ? viewer.mm2frac(chosen.centre) : position;
    fade();
    turn();
    part("canvas").dataset.ready = `${part("case").value} ${title} ${method()}`.trim();
  }

  part("box").hidden = part("form").hidden = part("legend").hidden = false;
  try {
    await viewer.attachToCanvas(part("canvas"));
    viewer.onLocationChange = (place) => {
      const value = part("overlay").checked ? Math.round(place.values[1]?.value ?? 0) : 0;
      part("place").textContent = colours.labels[value] ? "At the chosen point: " + colours.labels[value] + "." : "";
      told();
    };
    await choose();
  } catch (error) {
    part("box").hidden = part("form").hidden = part("legend").hidden = true;
    state.textContent = "The viewer could not start here (" + error.message + "). The pictures below show the same.";
    return;
  }
  state.textContent = "Scroll with the wheel, the slider or its arrow keys.";
  part("case").addEventListener("change", choose);
  part("map").addEventListener("change", () => show(false));
  part("method")?.addEventListener("change", () => {
    offer();
    show(false);
  });
  part("view").addEventListener("change", turn);
  part("overlay").addEventListener("change", fade);
  part("opacity").addEventListener("input", fade);
  part("slice").addEventListener("input", () => {
    viewer.scene.crosshairPos[axis()] = (Number(part("slice").value) - 0.5) / count();
    viewer.drawScene();
    told();
  });
  part("form").addEventListener("submit", (event) => event.preventDefault());
})();
