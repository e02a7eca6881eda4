#!/usr/bin/env node
/*
 * The gate before any other code is loaded. It must parse in old Nodes (12 and later), so that they get one clear line
 * instead of a syntax error: no optional chaining, no top-level await, no `node:` imports here.
 *
 * Exit code 69 (EX_UNAVAILABLE): this runtime cannot run Nostos.
 */
'use strict';

var fs = require('fs');
var path = require('path');
var url = require('url');

var EXIT_RUNTIME_TOO_OLD = 69;

/** Compares dotted numbers: negative when `a` is lower than `b`. */
function compare(a, b) {
  var left = a.split('.').map(Number);
  var right = b.split('.').map(Number);
  for (var i = 0; i < 3; i++) {
    var difference = (left[i] || 0) - (right[i] || 0);
    if (difference !== 0) return difference;
  }
  return 0;
}

function supports(node, sqlite) {
  var major = Number(node.split('.')[0]);
  var nodeOk = major === 24 ? compare(node, '24.19.0') >= 0 : compare(node, '26.4.0') >= 0;
  return nodeOk && sqlite !== undefined && compare(sqlite, '3.53.2') >= 0;
}

var node = process.versions.node;
var sqlite = process.versions.sqlite;

if (!supports(node, sqlite)) {
  process.stderr.write(
    'nostos needs Node.js 24.19 or newer of 24, or 26.4 or newer, with SQLite 3.53.2 or newer (an older SQLite can ' +
      'corrupt a database and commit what no replica can apply); this is Node.js ' +
      node +
      (sqlite === undefined ? ' without a known SQLite' : ' with SQLite ' + sqlite) +
      '.\n',
  );
  process.exit(EXIT_RUNTIME_TOO_OLD);
}

// In the repository the sources run as they are; the published package has only dist/.
var source = path.join(__dirname, '..', 'src', 'cli', 'main.ts');
var built = path.join(__dirname, '..', 'dist', 'cli', 'main.js');
var entry = fs.existsSync(source) ? source : built;

import(url.pathToFileURL(entry).href)
  .then(function (cli) {
    return cli.main(process.argv.slice(2));
  })
  .catch(function (error) {
    process.stderr.write('nostos could not start: ' + ((error && error.stack) || error) + '\n');
    process.exit(70);
  });
