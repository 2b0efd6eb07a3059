// A bundle's manifest for run.cc: nothing of a bundle is used before its SHA-256 is what it should be.

#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

[[noreturn]] inline void fail(const std::string& what) { throw std::runtime_error(what); }

inline std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) fail(path + " cannot be read");
  return {std::istreambuf_iterator<char>(file), {}};
}

// Where the manifest has the value at a path of keys, or npos. It is written with one space of indent a
// level, so that a table of the first level is found by what stands before its key and at its end.
inline size_t place_of(const std::string& manifest, const std::vector<std::string>& keys) {
  size_t at = 0, end = manifest.size();
  for (const std::string& key : keys) {
    const std::string mark = (at ? "\"" : "\n \"") + key + "\": ";
    at = manifest.find(mark, at);
    if (at >= end) return std::string::npos;
    at += mark.size();
    end = manifest.find("\n }", at);
  }
  return at;
}

inline bool has(const std::string& manifest, const std::vector<std::string>& keys) {
  return place_of(manifest, keys) != std::string::npos;
}

inline std::string lookup(const std::string& manifest, const std::vector<std::string>& keys) {
  size_t at = place_of(manifest, keys);
  if (at == std::string::npos) fail("the manifest does not tell of " + keys.back() + ": export the bundle again");
  at += at < manifest.size() && manifest[at] == '"';
  return manifest.substr(at, manifest.find_first_of("\",\n}", at) - at);
}

inline double seconds_of(const std::string& manifest, const std::string& key) {
  const std::string text = lookup(manifest, {"info", key});
  char* end;
  const double seconds = std::strtod(text.c_str(), &end);
  if (text.empty() || *end || !(seconds >= 0 && seconds <= 100))
    fail("the manifest gives " + text + " for " + key + ", which is 0 to 100 seconds: export the bundle again");
  return seconds;
}

inline std::string sha256(std::string data) {
  std::array<uint32_t, 64> k;  // by definition the fractions of the cube roots of the first primes,
  std::array<uint32_t, 8> h;   // and of their square roots
  const auto fraction = [](long double x) { return uint32_t((x - std::floor(x)) * 4294967296.0L); };
  for (int n = 2, i = 0; i < 64; ++n) {
    bool prime = true;
    for (int d = 2; d * d <= n; ++d) prime = prime && n % d;
    if (!prime) continue;
    if (i < 8) h[i] = fraction(std::sqrt((long double)n));
    k[i++] = fraction(std::cbrt((long double)n));
  }
  const uint64_t bits = data.size() * 8ull;
  data += '\x80';
  data.append((120 - data.size() % 64) % 64, '\0');
  for (int i = 7; i >= 0; --i) data += char(bits >> (8 * i));
  const auto turn = [](uint32_t x, int n) { return x >> n | x << (32 - n); };
  for (size_t at = 0; at < data.size(); at += 64) {
    std::array<uint32_t, 64> w{};
    for (int i = 0; i < 64; ++i) w[i / 4] = w[i / 4] << 8 | uint8_t(data[at + i]);
    for (int i = 16; i < 64; ++i) {
      const uint32_t a = w[i - 15], b = w[i - 2];
      w[i] = w[i - 16] + (turn(a, 7) ^ turn(a, 18) ^ a >> 3) + w[i - 7] + (turn(b, 17) ^ turn(b, 19) ^ b >> 10);
    }
    auto s = h;
    for (int i = 0; i < 64; ++i) {
      const uint32_t e = s[4], a = s[0];
      const uint32_t t = s[7] + (turn(e, 6) ^ turn(e, 11) ^ turn(e, 25)) + ((e & s[5]) ^ (~e & s[6])) + k[i] + w[i];
      const uint32_t u = (turn(a, 2) ^ turn(a, 13) ^ turn(a, 22)) + ((a & s[1]) ^ (a & s[2]) ^ (s[1] & s[2]));
      s = {t + u, a, s[1], s[2], s[3] + t, e, s[5], s[6]};
    }
    for (int i = 0; i < 8; ++i) h[i] += s[i];
  }
  char hex[65];
  for (int i = 0; i < 8; ++i) std::snprintf(hex + 8 * i, 9, "%08x", h[i]);
  return hex;
}

inline std::string checked(const std::string& bundle, const std::string& manifest, const std::string& name) {
  const std::string data = read_file(bundle + "/" + name);
  if (sha256(data) != lookup(manifest, {"files", name, "sha256"}))
    fail(bundle + " is damaged: " + name + " does not match its manifest");
  return data;
}
