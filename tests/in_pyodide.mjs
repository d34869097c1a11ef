// Run a Python program in Pyodide, the Python of web browsers, with a folder as its home:
//
//     node in_pyodide.mjs NODE_MODULES FOLDER PROGRAM
//
// It finds the folder's files in the current directory, and prints what it has to say.
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const [modules, folder, program] = process.argv.slice(2);
const { loadPyodide } = await import(pathToFileURL(join(modules, "pyodide", "pyodide.mjs")));
const pyodide = await loadPyodide();
pyodide.mountNodeFS("/home/pyodide", folder);
pyodide.runPython("import os, sys; os.chdir('/home/pyodide'); sys.path.insert(0, os.getcwd())");
await pyodide.runPythonAsync(readFileSync(program, "utf8"));
