// Transcribes with a bundle through onnxruntime's C API: features, search and checks on one page.
//
//   g++ -O2 -std=c++17 run.cc -I ORT/include -L ORT/lib -lonnxruntime -Wl,-rpath,ORT/lib -o run
//   ./run BUNDLE a.wav [b.wav ...] [--precision fp32|int8|int8.rr|int8.block|int4]
//       [--threshold CONFIDENCE]
//   arecord -t raw -f S16_LE -r 16000 -c 1 | ./run BUNDLE -
//
// Prints a line per recording (wav, 16 kHz, 16 bits): its path, a tab, its transcript. `-` is standard input,
// raw mono samples or a wav: a line per segment as soon as it has ended, its start and end in seconds and its
// text, in memory that does not grow with the stream. A segment of less confidence than the threshold (that of the
// bundle; 0 keeps all) gives no text. Every file it loads is held against the manifest first
// (manifest.h). Needs the C++ standard library and onnxruntime 1.12 or newer.

#include <onnxruntime_c_api.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <complex>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <sstream>
#include <string>
#include <vector>

#include "manifest.h"
#include "segments.h"

constexpr int kRate = 16000, kBins = 80, kShift = 160, kWindow = 400, kFft = 512, kBlank = 0;
constexpr double kPi = 3.14159265358979323846;

using Floats = std::vector<float>;

// 16-bit samples of a wav file or of standard input, in pieces as they arrive.
class Source {
 public:
  explicit Source(const std::string& path)
      : name_(path == "-" ? "standard input" : path), file_(path == "-" ? stdin : std::fopen(path.c_str(), "rb")) {
    if (!file_) fail(path + " cannot be read");
    head_ = take(12);
    if (head_.size() == 12 && head_.compare(0, 4, "RIFF") == 0 && head_.compare(8, 4, "WAVE") == 0)
      read_header();
    else if (file_ != stdin)
      fail(path + " is not a wav file");
  }
  ~Source() { file_ == stdin || std::fclose(file_); }
  Floats read() {  // channels averaged, at most 40 ms; nothing at the end
    const std::string bytes = head_ + take(std::min<uint64_t>(left_, 2 * channels_ * kRate / 25) - head_.size());
    head_.clear();
    left_ -= bytes.size();
    Floats samples(bytes.size() / 2 / channels_);
    for (size_t i = 0; i < samples.size() * channels_; ++i)
      samples[i / channels_] += int16_t(number(bytes, 2 * i, 2)) / 32768.0f / channels_;
    return samples;
  }

 private:
  std::string take(size_t size) {  // less only at the end
    std::string bytes(size, '\0');
    bytes.resize(std::fread(bytes.data(), 1, size, file_));
    return bytes;
  }
  static uint32_t number(const std::string& bytes, size_t at, int size) {
    uint32_t value = 0;
    while (size--) value = value << 8 | (at + size < bytes.size() ? uint8_t(bytes[at + size]) : 0);
    return value;
  }
  void read_header() {
    head_.clear();
    for (std::string format, chunk = take(8); chunk.size() == 8; chunk = take(8)) {
      uint64_t size = number(chunk, 4, 4);
      if (chunk.compare(0, 4, "data") == 0 && !format.empty()) return void(left_ = size < kUnknown ? size : left_);
      size += size % 2;
      if (chunk.compare(0, 4, "fmt ") == 0) {
        format = take(std::min<uint64_t>(size, 16));
        size -= format.size();
        channels_ = number(format, 2, 2);
        if (number(format, 0, 2) != 1 || number(format, 4, 4) != kRate || number(format, 14, 2) != 16 || !channels_)
          fail(name_ + " is not 16 kHz in 16 bits: convert it");
      }
      for (size_t got = 1; size && got; size -= got) got = take(std::min<uint64_t>(size, 4096)).size();
    }
    fail(name_ + " holds no samples");
  }

  static constexpr uint32_t kUnknown = 0x7fff0000;  // a header written before the length was known
  std::string name_, head_;
  std::FILE* file_;
  uint64_t left_ = UINT64_MAX, channels_ = 1;
};

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

// 80 log-mel bins every 10 ms, as kaldi-native-fbank gives them to sherpa-onnx, as audio arrives.
class Features {
 public:
  Features() {
    const double low = mel(20), step = (mel(kRate / 2 - 400) - low) / (kBins + 1);
    for (int i = 0; i < kWindow; ++i) povey_[i] = std::pow(0.5 - 0.5 * std::cos(2 * kPi * i / (kWindow - 1)), 0.85);
    for (int i = 0; i < kFft / 2; ++i) places_[i] = (mel(double(i) * kRate / kFft) - low) / step;
  }
  void accept(const Floats& samples) {
    samples_.insert(samples_.end(), samples.begin(), samples.end());
    total_ += samples.size();
    while (done_ < (total_ + kFirst) / kShift) add();  // those whose window is complete
    const int64_t next = std::max<int64_t>(0, done_ * kShift + kFirst);
    samples_.erase(samples_.begin(), samples_.begin() + (next - first_));
    first_ = next;
  }
  void finish() {
    while (done_ < (total_ + kShift / 2) / kShift) add();
  }

  Floats ready;  // [T * 80] frames that were not taken yet

 private:
  void add() {  // the next frame
    std::array<double, kWindow> window;
    double mean = 0;
    for (int i = 0; i < kWindow; ++i) {
      int64_t at = done_ * kShift + kFirst + i;
      while (at < 0 || at >= total_) at = at < 0 ? -at - 1 : 2 * total_ - 1 - at;  // mirrored at both ends
      mean += (window[i] = samples_[at - first_]) / kWindow;
    }
    Spectrum x{};
    for (int i = 0; i < kWindow; ++i)
      x[i] = (window[i] - mean - 0.97 * (window[std::max(0, i - 1)] - mean)) * povey_[i];
    fft(x);
    std::array<double, kBins> energy{};
    for (int i = 0; i < kFft / 2; ++i)
      for (int bin = int(places_[i]) - 1; bin <= int(places_[i]); ++bin)
        if (places_[i] > 0 && bin >= 0 && bin < kBins)
          energy[bin] += std::max(0.0, 1 - std::abs(places_[i] - bin - 1)) * std::norm(x[i]);
    for (const double value : energy) ready.push_back(float(std::log(std::max(value, std::ldexp(1.0, -23)))));
    ++done_;
  }

  static constexpr int kFirst = kShift / 2 - kWindow / 2;  // where frame 0 begins
  std::array<double, kWindow> povey_;
  std::array<double, kFft / 2> places_;  // of an FFT bin among the mel bins, whose triangles overlap
  Floats samples_;                       // those that later frames need, the first of them at first_
  int64_t first_ = 0, total_ = 0, done_ = 0;
};

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
    check(api->AddSessionConfigEntry(options, "session.x64quantprecision", "1"));  // no overflow in int8
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

struct Model {
  Graph encoder, decoder, joiner;
  std::vector<std::string> tokens;
  double tail;  // seconds of silence that let the last words out
  Cut cut;
  bool restarts;  // whether a pause starts the decoder's context again; not in bundles of earlier versions
};

// One stream, greedy, at most one symbol a frame; the encoder's two states are carried from chunk to chunk.
class Stream {
 public:
  explicit Stream(const Model& model)
      : model_(model), chunk_(model.encoder.number("T")), shift_(model.encoder.number("decode_chunk_len")),
        start_(model.decoder.number("context_size"), -1) {
    const int64_t layers = model.encoder.number("num_encoder_layers");
    for (const char* key : {"d_model", "rnn_hidden_size"}) {
      const int64_t size = model.encoder.number(key);
      states_.push_back({{layers, 1, size}, Floats(layers * size), {}});
    }
    start_.back() = kBlank;
    context_ = start_;
    predicted_ = at_start_ = predict();
  }
  void accept(const Floats& samples) {
    features_.accept(samples);
    advance();
  }
  void finish() {
    accept(Floats(size_t(std::lround(model_.tail * kRate))));
    features_.finish();
    advance();
  }

  std::vector<Symbol> symbols;  // those that were not taken yet
  int64_t now = 0;              // the frame that comes next

 private:
  Floats predict() const { return model_.decoder.run({{{1, int64_t(context_.size())}, {}, context_}}, 1)[0]; }
  void advance() {  // as in sherpa-onnx, a chunk is decoded when one frame more is there
    Floats& ready = features_.ready;
    while (int64_t(ready.size()) > chunk_ * kBins) {
      const Tensor x{{1, chunk_, kBins}, {ready.begin(), ready.begin() + chunk_ * kBins}, {}};
      const std::vector<Floats> found = model_.encoder.run({x, states_[0], states_[1]}, 3);
      for (int i = 0; i < 2; ++i) states_[i].values = found[i + 1];
      const int64_t width = predicted_.size();
      for (auto at = found[0].begin(); found[0].end() - at >= width; at += width) search({at, at + width});
      ready.erase(ready.begin(), ready.begin() + std::min(shift_, chunk_) * kBins);
    }
  }
  void search(const Floats& encoded) {
    if (model_.restarts && context_ != start_ && now - last_ > model_.cut.pause) {
      context_ = start_;
      predicted_ = at_start_;
    }
    const int64_t width = encoded.size();
    const Floats logits = model_.joiner.run({{{1, width}, encoded, {}}, {{1, width}, predicted_, {}}}, 1)[0];
    const int64_t best = std::max_element(logits.begin(), logits.end()) - logits.begin();
    if (best != kBlank && model_.tokens.at(best) != "<unk>") {
      symbols.push_back({best, now, log_prob(logits, best)});
      last_ = now;
      context_.erase(context_.begin());
      context_.push_back(best);
      predicted_ = predict();
    }
    ++now;
  }

  const Model& model_;
  const int64_t chunk_, shift_;
  std::vector<int64_t> start_, context_;
  std::vector<Tensor> states_;
  Features features_;
  Floats predicted_, at_start_;
  int64_t last_ = 0;  // the frame of the last symbol
};

void print_segments(const Model& model, std::vector<Symbol>& symbols, int64_t now) {
  take_segments(model.cut, model.tokens, symbols, now, [](double start, double end, const std::string& text) {
    std::printf("%.2f\t%.2f\t%s\n", start, end, text.c_str());
  });
  std::fflush(stdout);
}

std::string whole_text(const Model& model, std::vector<Symbol>& symbols) {
  if (model.cut.threshold <= 0) return text_of(model.tokens, symbols, symbols.size());
  std::string whole;
  take_segments(model.cut, model.tokens, symbols, INT64_MAX,
                [&](double, double, const std::string& text) { whole += (whole.empty() ? "" : " ") + text; });
  return whole;
}

void transcribe(const Model& model, const std::string& path) {
  Source source(path);
  Stream stream(model);
  const bool live = path == "-";
  for (Floats piece; !(piece = source.read()).empty();) {
    stream.accept(piece);
    if (live) print_segments(model, stream.symbols, stream.now);
  }
  stream.finish();
  if (live) return print_segments(model, stream.symbols, INT64_MAX);
  std::printf("%s\t%s\n", path.c_str(), whole_text(model, stream.symbols).c_str());
}

std::string option(std::vector<std::string>& given, const std::string& name) {  // its value, taken out; or nothing
  const auto flag = std::find(given.begin(), given.end(), name);
  if (flag == given.end() || flag + 1 == given.end()) return "";
  const std::string value = flag[1];
  given.erase(flag, flag + 2);
  return value;
}

void run(std::vector<std::string> given) {
  std::string precision = option(given, "--precision");
  if (precision.empty()) precision = "fp32";
  const std::string asked = option(given, "--threshold");
  if (given.size() < 2) fail("usage: run BUNDLE a.wav [b.wav ...] | - [--precision fp32|int8|...] [--threshold 0..1]");
  if (!api) fail("this onnxruntime is older than 1.12");
  const std::string& bundle = given[0];
  const std::string manifest = read_file(bundle + "/manifest.json");
  if (lookup(manifest, {"kind"}) != "bundle" || lookup(manifest, {"format_version"}) != "1")
    fail(bundle + " is not a bundle of format 1: give the folder that todm export wrote");
  const bool exact = precision == "fp32", restarts = has(manifest, {"info", "endpoint_seconds"});
  const double tail = seconds_of(manifest, "tail_seconds");
  const double pause = restarts ? seconds_of(manifest, "endpoint_seconds") : 0.8;
  const bool decides = asked.empty() && has(manifest, {"info", "decision_threshold"});
  const double threshold = share_of(decides ? lookup(manifest, {"info", "decision_threshold"}) : asked);
  OrtEnv* env;
  check(api->CreateEnv(ORT_LOGGING_LEVEL_FATAL, "run", &env));
  const auto graph = [&](const std::string& stem, const std::string& form) {
    return Graph(env, checked(bundle, manifest, stem + (exact ? "" : "." + form) + ".onnx"));
  };
  // All smaller encoders share the int8 decoder and joiner.
  Model model{graph("encoder", precision), graph("decoder", "int8"), graph("joiner", "int8"), {}, tail,
              {int64_t(std::floor(pause / 0.04 + 0.5)), threshold}, restarts};
  std::istringstream lines(checked(bundle, manifest, "tokens.txt"));  // "symbol id"; an id alone is a space
  for (std::string line; std::getline(lines, line);)
    model.tokens.push_back(line.find(' ') == std::string::npos ? " " : line.substr(0, line.rfind(' ')));
  if (int64_t(model.tokens.size()) != model.decoder.number("vocab_size"))
    fail("tokens.txt has not as many tokens as the decoder");
  for (size_t i = 1; i < given.size(); ++i) transcribe(model, given[i]);
}

int main(int argc, char** argv) try {
  run({argv + 1, argv + argc});
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
