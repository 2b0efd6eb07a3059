#!/usr/bin/env bash
# What `todm export --target web` and its test need from npm: the runtime, and a driver for the browser.
# They go into build/node_modules. The browser itself is the system's: apt-get install chromium.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
mkdir -p build
npm install --prefix build --no-save --no-package-lock --no-audit --no-fund --ignore-scripts --loglevel=error \
  onnxruntime-web@1.30.0 playwright-core@1.65.1
