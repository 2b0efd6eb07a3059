// Segments of a transcript for run.cc: words between two pauses, and how sure the recogniser is of them.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "manifest.h"

struct Symbol {
  int64_t id, frame;
  double log_prob;  // at its frame, against all other symbols
};

struct Cut {
  int64_t pause;     // frames without a symbol that end a segment
  double threshold;  // the confidence below which it gives no text
};

inline double log_prob(const std::vector<float>& logits, int64_t best) {  // of the greatest
  double sum = 0;
  for (const float logit : logits) sum += std::exp(double(logit) - logits[best]);
  return -std::log(sum);
}

inline double seconds(int64_t frame) { return frame / 25.0; }

// The number of symbols in the first segment, 0 if it is not complete: a pause ends it, or a word after 20 s.
inline size_t first_segment(const std::vector<std::string>& tokens, const std::vector<Symbol>& symbols, int64_t pause,
                            int64_t now) {
  size_t word = 0;  // the last that began
  for (size_t i = 0; i < symbols.size(); ++i) {
    if (tokens.at(symbols[i].id).compare(0, 3, "\u2581") == 0) word = i;
    if (seconds(symbols[i].frame) - seconds(symbols[0].frame) >= 20) return word ? word : i;
    const int64_t following = i + 1 < symbols.size() ? symbols[i + 1].frame : now;
    if (following - symbols[i].frame > pause) return i + 1;
  }
  return 0;
}

inline std::string text_of(const std::vector<std::string>& tokens, const std::vector<Symbol>& symbols, size_t count) {
  std::string text;
  for (size_t i = 0; i < count; ++i) text += tokens.at(symbols[i].id);
  for (size_t at; (at = text.find("\u2581")) != std::string::npos;) text.replace(at, 3, " ");
  text.erase(0, text.find_first_not_of(' '));
  text.erase(text.find_last_not_of(' ') + 1);
  return text;
}

// The confidence of the first symbols, 0 to 1; as in todm/device/decision.py, which says why.
inline double confidence(const std::vector<Symbol>& symbols, size_t count) {
  const double certain = -std::log1p(std::exp(-8.0));  // the log-probability of the most that a symbol counts for
  double odds = 0;
  for (size_t i = 0; i < count; ++i) {
    const double log_prob = std::min(symbols[i].log_prob, certain);
    odds += log_prob - std::log1p(-std::exp(log_prob));
  }
  return 1 / (1 + std::exp(-odds / (count + 1)));
}

// Takes out every complete segment, and says those that are sure enough: say(start, end, text).
template <typename Say>
void take_segments(const Cut& cut, const std::vector<std::string>& tokens, std::vector<Symbol>& symbols, int64_t now,
                   const Say& say) {
  while (const size_t count = first_segment(tokens, symbols, cut.pause, now)) {
    const std::string text = text_of(tokens, symbols, count);
    if (!text.empty() && confidence(symbols, count) >= cut.threshold)
      say(seconds(symbols[0].frame), seconds(symbols[count - 1].frame + 1), text);
    symbols.erase(symbols.begin(), symbols.begin() + count);
  }
}

// A threshold from its text; 0 where there is none.
inline double share_of(const std::string& text) {
  char* end;
  const double share = std::strtod(text.c_str(), &end);
  if (*end || !(share >= 0 && share <= 1)) fail("the threshold is " + text + ", and a confidence from 0 to 1 is needed");
  return share;
}
