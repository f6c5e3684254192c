/** In place of vtk.js's readers of meshes: this viewer shows none, and they bring an XML library along. */

export default {
  newInstance(): never {
    throw new Error("meshes are not read here");
  },
};
