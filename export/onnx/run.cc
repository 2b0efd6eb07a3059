// Transcribes with a bundle through onnxruntime's C API: features, search and checks on one page.
//
//   g++ -O2 -std=c++17 run.cc -I ORT/include -L ORT/lib -lonnxruntime -Wl,-rpath,ORT/lib -o run
//   ./run BUNDLE a.wav [b.wav ...] [--precision fp32|int8|int8.rr|int8.block|int4]
//
// Prints a line per recording (wav, 16 kHz, 16 bits): its path, a tab, its transcript. Every file it loads
// is held against the manifest first (manifest.h). Needs the C++ standard library and onnxruntime 1.12 or newer.

#include <onnxruntime_c_api.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <complex>
#include <cstdio>
#include <cstdlib>
#include <sstream>
#include <string>
#include <vector>

#include "manifest.h"

constexpr int kRate = 16000, kBins = 80, kShift = 160, kWindow = 400, kFft = 512, kBlank = 0;
constexpr double kPi = 3.14159265358979323846;

using Floats = std::vector<float>;

Floats read_wav(const std::string& path) {
  const std::string data = read_file(path);
  const auto number = [&](size_t at, int bytes) {
    uint32_t value = 0;
    while (bytes--) value = value << 8 | (at + bytes < data.size() ? uint8_t(data[at + bytes]) : 0);
    return value;
  };
  if (data.compare(0, 4, "RIFF") || data.size() < 12 || data.compare(8, 4, "WAVE")) fail(path + " is not a wav file");
  for (size_t at = 12, format = 0; at + 8 <= data.size(); at += 8 + number(at + 4, 4) + number(at + 4, 4) % 2) {
    if (!data.compare(at, 4, "fmt ")) format = at + 8;
    if (data.compare(at, 4, "data") || !format) continue;
    const uint32_t channels = number(format + 2, 2);
    if (number(format, 2) != 1 || number(format + 4, 4) != kRate || number(format + 14, 2) != 16 || !channels)
      fail(path + " is not 16 kHz in 16 bits: convert it");
    Floats samples(std::min<size_t>(number(at + 4, 4), data.size() - at - 8) / 2 / channels);
    for (size_t i = 0; i < samples.size() * channels; ++i)
      samples[i / channels] += int16_t(number(at + 8 + 2 * i, 2)) / 32768.0f / channels;
    return samples;
  }
  fail(path + " holds no samples");
}

using Spectrum = std::array<std::complex<double>, kFft>;

void fft(Spectrum& x) {  // radix 2, in place
  static const Spectrum turns = [] {
    Spectrum found;
    for (int i = 0; i < kFft; ++i) found[i] = std::polar(1.0, -2 * kPi * i / kFft);
    return found;
  }();
  for (int i = 1, j = 0; i < kFft; ++i) {
    int bit = kFft / 2;
    for (; j & bit; bit /= 2) j ^= bit;
    if (i < (j ^= bit)) std::swap(x[i], x[j]);
  }
  for (int half = 1; half < kFft; half *= 2)
    for (int at = 0; at < kFft; at = at + 1 + ((at + 1) & half)) {
      const auto turned = x[at + half] * turns[(at & (half - 1)) * (kFft / 2 / half)];
      x[at + half] = x[at] - turned;
      x[at] += turned;
    }
}

double mel(double hertz) { return 1127 * std::log(1 + hertz / 700); }

// 80 log-mel bins every 10 ms, [T * 80], as kaldi-native-fbank gives them to sherpa-onnx.
Floats features(const Floats& samples) {
  const long size = long(samples.size()), num_frames = size ? (size + kShift / 2) / kShift : 0;
  const double low = mel(20), step = (mel(kRate / 2 - 400) - low) / (kBins + 1);
  Floats frames(num_frames * kBins);
  for (long frame = 0; frame < num_frames; ++frame) {
    std::array<double, kWindow> window;
    double mean = 0;
    for (int i = 0; i < kWindow; ++i) {
      long at = frame * kShift + kShift / 2 - kWindow / 2 + i;
      while (at < 0 || at >= size) at = at < 0 ? -at - 1 : 2 * size - 1 - at;  // mirrored at both ends
      mean += (window[i] = samples[at]) / kWindow;
    }
    Spectrum x{};
    for (int i = 0; i < kWindow; ++i) {
      const double flat = window[i] - mean - 0.97 * (window[std::max(0, i - 1)] - mean);
      x[i] = flat * std::pow(0.5 - 0.5 * std::cos(2 * kPi * i / (kWindow - 1)), 0.85);
    }
    fft(x);
    std::array<double, kBins> energy{};
    for (int i = 0; i < kFft / 2; ++i) {
      const double place = (mel(double(i) * kRate / kFft) - low) / step;  // in bins; triangles overlap
      for (int bin = int(place) - 1; bin <= int(place); ++bin)
        if (place > 0 && bin >= 0 && bin < kBins)
          energy[bin] += std::max(0.0, 1 - std::abs(place - bin - 1)) * std::norm(x[i]);
    }
    for (int bin = 0; bin < kBins; ++bin)
      frames[frame * kBins + bin] = float(std::log(std::max(energy[bin], std::ldexp(1.0, -23))));
  }
  return frames;
}

const OrtApi* api = OrtGetApiBase()->GetApi(12);  // all that is used here is older

void check(OrtStatus* status) {
  if (!status) return;
  const std::string message = api->GetErrorMessage(status);
  api->ReleaseStatus(status);
  fail("onnxruntime: " + message);
}

struct Tensor {
  std::vector<int64_t> shape;
  Floats values;
  std::vector<int64_t> ids;  // instead of values, for the decoder
};

struct Graph {  // lives as long as the program
  Graph(OrtEnv* env, const std::string& bytes) {
    OrtSessionOptions* options;
    check(api->CreateSessionOptions(&options));
    check(api->SetIntraOpNumThreads(options, 1));
    check(api->CreateSessionFromArray(env, bytes.data(), bytes.size(), options, &session_));
    api->ReleaseSessionOptions(options);
    check(api->GetAllocatorWithDefaultOptions(&allocator_));
    check(api->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory_));
    size_t count;
    check(api->SessionGetInputCount(session_, &count));
    inputs_.resize(count);
    for (size_t i = 0; i < count; ++i) check(api->SessionGetInputName(session_, i, allocator_, &inputs_[i]));
    check(api->SessionGetOutputCount(session_, &count));
    outputs_.resize(count);
    for (size_t i = 0; i < count; ++i) check(api->SessionGetOutputName(session_, i, allocator_, &outputs_[i]));
  }
  int64_t number(const char* key) const {
    OrtModelMetadata* metadata;
    check(api->SessionGetModelMetadata(session_, &metadata));
    char* text = nullptr;
    check(api->ModelMetadataLookupCustomMetadataMap(metadata, allocator_, key, &text));
    const long value = text ? std::atol(text) : 0;
    if (value < 1) fail(std::string("the metadata has no ") + key + ": not a bundle of todm, or a broken one");
    api->ReleaseModelMetadata(metadata);
    return value;
  }
  std::vector<Floats> run(std::vector<Tensor> given, size_t num_outputs) const {
    if (given.size() != inputs_.size() || num_outputs != outputs_.size()) fail("a graph has other inputs or outputs");
    std::vector<OrtValue*> in(given.size()), out(num_outputs);
    for (size_t i = 0; i < given.size(); ++i) {
      auto& [shape, values, ids] = given[i];
      const auto type = ids.empty() ? ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT : ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
      void* data = ids.empty() ? (void*)values.data() : (void*)ids.data();
      const size_t bytes = values.size() * sizeof(float) + ids.size() * sizeof(int64_t);
      check(api->CreateTensorWithDataAsOrtValue(memory_, data, bytes, shape.data(), shape.size(), type, &in[i]));
    }
    check(api->Run(session_, nullptr, inputs_.data(), in.data(), in.size(), outputs_.data(), out.size(), out.data()));
    std::vector<Floats> results;
    for (OrtValue* value : out) {
      OrtTensorTypeAndShapeInfo* info;
      size_t size;
      float* data;
      check(api->GetTensorTypeAndShape(value, &info));
      check(api->GetTensorShapeElementCount(info, &size));
      check(api->GetTensorMutableData(value, (void**)&data));
      results.emplace_back(data, data + size);
      api->ReleaseTensorTypeAndShapeInfo(info);
      api->ReleaseValue(value);
    }
    for (OrtValue* value : in) api->ReleaseValue(value);
    return results;
  }

  OrtSession* session_;
  OrtAllocator* allocator_;
  OrtMemoryInfo* memory_;
  std::vector<char*> inputs_, outputs_;
};

// Greedy, at most one symbol a frame; the encoder's two states are carried from chunk to chunk.
std::vector<int64_t> decode(const Graph& encoder, const Graph& decoder, const Graph& joiner,
                            const std::vector<std::string>& tokens, const Floats& frames) {
  const int64_t chunk = encoder.number("T"), shift = encoder.number("decode_chunk_len");
  const int64_t layers = encoder.number("num_encoder_layers"), context = decoder.number("context_size");
  std::vector<Tensor> states;
  for (const int64_t size : {encoder.number("d_model"), encoder.number("rnn_hidden_size")})
    states.push_back({{layers, 1, size}, Floats(layers * size), {}});
  std::vector<int64_t> ids(context, -1);
  ids.back() = kBlank;
  const auto predict = [&] { return decoder.run({{{1, context}, {}, {ids.end() - context, ids.end()}}}, 1)[0]; };
  Floats predicted = predict();
  const int64_t width = predicted.size();
  // As in sherpa-onnx, a chunk is decoded when one frame more is there.
  for (auto at = frames.begin(); frames.end() - at > chunk * kBins; at += std::min(shift, chunk) * kBins) {
    const Tensor x{{1, chunk, kBins}, {at, at + chunk * kBins}, {}};
    const std::vector<Floats> found = encoder.run({x, states[0], states[1]}, 3);
    for (int i = 0; i < 2; ++i) states[i].values = found[i + 1];
    for (auto from = found[0].begin(); found[0].end() - from >= width; from += width) {
      const Floats logits = joiner.run({{{1, width}, {from, from + width}, {}}, {{1, width}, predicted, {}}}, 1)[0];
      const int64_t best = std::max_element(logits.begin(), logits.end()) - logits.begin();
      if (best == kBlank || tokens.at(best) == "<unk>") continue;
      ids.push_back(best);
      predicted = predict();
    }
  }
  return {ids.begin() + context, ids.end()};
}

void run(std::vector<std::string> given) {
  std::string precision = "fp32";
  const auto flag = std::find(given.begin(), given.end(), "--precision");
  if (flag != given.end() && flag + 1 != given.end()) precision = flag[1], given.erase(flag, flag + 2);
  if (given.size() < 2) fail("usage: run BUNDLE a.wav [b.wav ...] [--precision fp32|int8|...]");
  if (!api) fail("this onnxruntime is older than 1.12");
  const std::string& bundle = given[0];
  const std::string manifest = read_file(bundle + "/manifest.json");
  if (lookup(manifest, {"kind"}) != "bundle" || lookup(manifest, {"format_version"}) != "1")
    fail(bundle + " is not a bundle of format 1: give the folder that todm export wrote");
  const bool exact = precision == "fp32";
  OrtEnv* env;
  check(api->CreateEnv(ORT_LOGGING_LEVEL_FATAL, "run", &env));
  const auto graph = [&](const std::string& stem, const std::string& form) {
    return Graph(env, checked(bundle, manifest, stem + (exact ? "" : "." + form) + ".onnx"));
  };
  // All smaller encoders share the int8 decoder and joiner.
  const Graph encoder = graph("encoder", precision);
  const Graph decoder = graph("decoder", "int8"), joiner = graph("joiner", "int8");
  std::vector<std::string> tokens;  // "symbol id" a line, in order of ids; an id alone is a space
  std::istringstream lines(checked(bundle, manifest, "tokens.txt"));
  for (std::string line; std::getline(lines, line);)
    tokens.push_back(line.find(' ') == std::string::npos ? " " : line.substr(0, line.rfind(' ')));
  if (int64_t(tokens.size()) != decoder.number("vocab_size")) fail("tokens.txt has not as many tokens as the decoder");
  const double tail = std::atof(lookup(manifest, {"info", "tail_seconds"}).c_str());
  for (size_t i = 1; i < given.size(); ++i) {
    Floats samples = read_wav(given[i]);
    samples.resize(samples.size() + size_t(std::lround(tail * kRate)));  // silence lets the last words out
    std::string text;
    for (const int64_t id : decode(encoder, decoder, joiner, tokens, features(samples))) text += tokens.at(id);
    for (size_t at; (at = text.find("\u2581")) != std::string::npos;) text.replace(at, 3, " ");
    const size_t start = text.find_first_not_of(' ');
    std::printf("%s\t%s\n", given[i].c_str(), start == std::string::npos ? "" : text.c_str() + start);
  }
}

int main(int argc, char** argv) try {
  run({argv + 1, argv + argc});
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
