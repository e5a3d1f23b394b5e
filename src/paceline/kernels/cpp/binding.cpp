// What Python sees of the kernels. Signatures and docstrings are in ../_kernels.pyi.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <chrono>
#include <optional>

#include "lookups.hpp"
#include "model.hpp"
#include "noise.hpp"

namespace nb = nanobind;
using namespace paceline;

namespace {

template <typename T>
using Vector = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Bytes = Vector<uint8_t>;
using Ints = Vector<int32_t>;
using Floats = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
// Rows may lie apart, each one is contiguous.
using StridedRows = nb::ndarray<float, nb::ndim<2>, nb::device::cpu>;
using Doubles = nb::ndarray<const double, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Cube = nb::ndarray<float, nb::ndim<3>, nb::c_contig, nb::device::cpu>;

WeightType weight_type(const std::string& name) {
    std::string names;
    for (int i = 0; i < (int)WeightType::kCount; i++) {
        if (name == kFormats[i].name) return (WeightType)i;
        names += (i ? ", " : "") + std::string(kFormats[i].name);
    }
    throw std::invalid_argument("weight type '" + name + "' has no kernel; there are " + names);
}

// The type if its rows can have that many columns.
WeightType weight_type(const std::string& name, int columns) {
    const WeightType type = weight_type(name);
    const int whole = std::max(kGroup, format_of(type).span);
    if (columns <= 0 || columns % whole) throw std::invalid_argument(name + " needs rows of a multiple of " + std::to_string(whole) + " columns, not " + std::to_string(columns));
    return type;
}

// A model and the Python arrays that its weights lie in.
class BoundModel {
  public:
    BoundModel(nb::dict shape, nb::dict tensors, const std::vector<int>& windows, Doubles frequencies, int cache_pages, int max_positions, int threads,
               const std::string& isa)
        : tensors_(tensors) {
        const auto number = [&](const char* key) { return nb::cast<int>(shape[key]); };
        ModelRecord record{};
        record.hidden = number("hidden"), record.layers = number("layers"), record.heads = number("heads");
        record.kv_heads = number("kv_heads"), record.head_dim = number("head_dim"), record.ffn = number("ffn"), record.vocab = number("vocab_size");
        record.norm_eps = nb::cast<float>(shape["norm_eps"]), record.gelu = nb::cast<bool>(shape["gelu"]);
        record.embedding_scale = nb::cast<float>(shape["embedding_scale"]), record.query_scale = nb::cast<float>(shape["query_scale"]);
        if ((int)windows.size() != record.layers || frequencies.shape(0) != 2 || (int)frequencies.shape(1) != record.head_dim / 2)
            throw std::invalid_argument("windows or frequencies do not fit the model's shape");
        const int q = record.heads * record.head_dim, kv = record.kv_heads * record.head_dim;
        record.takes_features = nb::cast<bool>(shape["takes_features"]), record.feature_norm = optional_vector("feature_norm.weight", record.hidden);
        record.output_norm = vector("output_norm.weight", record.hidden);
        record.embedding = matrix("token_embd.weight", record.vocab, record.hidden);
        record.head = tensors.contains("output.weight") ? matrix("output.weight", number("outputs"), record.hidden) : record.embedding;
        std::vector<Layer> layers;
        for (int i = 0; i < record.layers; i++) {
            const std::string at = "blk." + std::to_string(i) + ".";
            const float* token_norm = optional_vector(at + "token_norm.weight", record.hidden);
            const auto projection = [&](const char* name, int rows) {
                return Projection{matrix(at + name + ".weight", rows, token_norm ? 2 * record.hidden : record.hidden), optional_vector(at + name + ".bias", rows),
                                  optional_vector(at + name + "_norm.weight", record.head_dim)};
            };
            Layer layer{};
            layer.attention_norm = optional_vector(at + "attn_norm.weight", record.hidden);
            layer.token_norm = token_norm;
            layer.q = projection("attn_q", q), layer.k = projection("attn_k", kv), layer.v = projection("attn_v", kv);
            layer.o = matrix(at + "attn_output.weight", record.hidden, q);
            layer.attention_post_norm = optional_vector(at + "post_attention_norm.weight", record.hidden);
            layer.ffn_norm = vector(at + "ffn_norm.weight", record.hidden);
            layer.gate = matrix(at + "ffn_gate.weight", record.ffn, record.hidden), layer.up = matrix(at + "ffn_up.weight", record.ffn, record.hidden);
            layer.down = matrix(at + "ffn_down.weight", record.hidden, record.ffn);
            layer.ffn_post_norm = optional_vector(at + "post_ffw_norm.weight", record.hidden);
            layer.window = windows[i] > 0 ? windows[i] : kNoWindow;
            layers.push_back(layer);
        }
        const double* first = frequencies.data();
        const double* second = first + record.head_dim / 2;
        model_ = std::make_unique<Model>(record, std::move(layers), std::vector<double>(first, second), std::vector<double>(second, second + record.head_dim / 2),
                                         cache_pages, max_positions, threads, isa);
    }

    void forward(Ints slots, Ints offsets, Ints starts, Ints tokens, Ints parents, Ints positions, Ints scored, StridedRows logits,
                 const std::vector<int32_t>& tap_layers, const std::vector<Floats>& taps, const std::optional<Floats>& features = {},
                 const std::optional<Floats>& pads = {}, const Shortcut* shortcut = nullptr) {
        const ModelRecord& record = model_->record();
        if (logits.shape(0) < scored.shape(0) || (int)logits.shape(1) != record.head.rows || logits.stride(1) != 1)
            throw std::invalid_argument("logits have the wrong shape");
        if (features.has_value() != record.takes_features || (features && (features->shape(0) != tokens.shape(0) || (int)features->shape(1) != record.hidden)))
            throw std::invalid_argument(record.takes_features ? "this model takes features [nodes, hidden]" : "this model takes no features");
        std::vector<float*> tap_rows;
        for (const auto& tap : taps) {
            if (tap.shape(0) != tokens.shape(0) || (int)tap.shape(1) != record.hidden) throw std::invalid_argument("a tap has the wrong shape");
            tap_rows.push_back(tap.data());
        }
        if (pads && (record.takes_features || (int)pads->shape(1) != record.hidden)) throw std::invalid_argument("pads have the wrong shape, or the model takes features");
        const int vocab = record.vocab + (pads ? (int)pads->shape(0) : 0);
        for (size_t i = 0; i < tokens.shape(0); i++)
            if (tokens.data()[i] < 0 || tokens.data()[i] >= vocab)
                throw std::invalid_argument("token " + std::to_string(tokens.data()[i]) + " is not in 0.." + std::to_string(vocab - 1));
        const PackedDraft draft{(int)slots.shape(0), (int)tokens.shape(0), (int)scored.shape(0), slots.data(), offsets.data(), starts.data(),
                                tokens.data(), parents.data(), positions.data(), scored.data(), features ? features->data() : nullptr,
                                pads ? pads->data() : nullptr};
        nb::gil_scoped_release release;
        model_->forward(draft, logits.data(), (size_t)logits.stride(0), tap_layers, tap_rows, shortcut);
    }

    void sketch(Ints slots, Ints offsets, Ints starts, Ints tokens, Ints parents, Ints positions, Ints scored, StridedRows logits,
                const std::vector<int32_t>& skipped, int sinks, int recent, const std::vector<int32_t>& tap_layers, const std::vector<Floats>& taps) {
        Shortcut shortcut{std::vector<uint8_t>(model_->record().layers), sinks, recent};
        for (const int32_t layer : skipped) shortcut.skipped.at(layer) = 1;
        forward(slots, offsets, starts, tokens, parents, positions, scored, logits, tap_layers, taps, {}, {}, &shortcut);
    }

    Model& model() { return *model_; }

  private:
    const uint8_t* bytes(const std::string& name, size_t wanted) {
        const auto found = nb::cast<Bytes>(tensors_[name.c_str()]);
        if (found.size() != wanted || (size_t)found.data() % 64)
            throw std::invalid_argument("tensor '" + name + "' must have " + std::to_string(wanted) + " bytes at a multiple of 64, has " + std::to_string(found.size()));
        return found.data();
    }
    const float* vector(const std::string& name, int size) { return (const float*)bytes(name, sizeof(float) * size); }
    const float* optional_vector(const std::string& name, int size) { return tensors_.contains(name.c_str()) ? vector(name, size) : nullptr; }
    Matrix matrix(const std::string& name, int rows, int columns) {
        const WeightType type = weight_type(nb::cast<std::string>(nb::object(tensors_[(name + ".type").c_str()])), columns);
        const Matrix shape = describe(type, rows, columns, nullptr);
        return describe(type, rows, columns, bytes(name, shape.block_bytes * ((rows + kLanes - 1) / kLanes)));
    }

    nb::dict tensors_;
    std::unique_ptr<Model> model_;
};

nb::dict stage_seconds(BoundModel& bound) {
    static const char* names[kStages] = {"embed", "qkv", "attention", "output", "gate_up", "down", "head"};
    nb::dict result;
    const auto& seconds = bound.model().stage_seconds;
    for (size_t i = 0; i < seconds.size(); i++) result[names[i]] = seconds[i];
    return result;
}

// A packed matrix that rows are multiplied by. Each thread takes some of the matrix's rows, and quantises x for itself: what is multiplied
// has few rows.
class Product {
  public:
    Product(const std::string& type, int rows, int columns, Bytes packed, int threads, const std::string& isa)
        : kind_(weight_type(type, columns)), rows_(rows), columns_(columns), blocks_((rows + kLanes - 1) / kLanes), bytes_(block_bytes(kind_, columns)),
          data_(packed.data()), kernels_(choose_kernels(isa)), pool_(ThreadPool::shared(threads)) {
        if (packed.size() != bytes_ * blocks_) throw std::invalid_argument("Product: shapes do not agree");
    }

    void multiply(Floats x, Floats out) const {
        if ((int)x.shape(1) != columns_ || out.shape(0) != x.shape(0) || (int)out.shape(1) != blocks_ * kLanes)
            throw std::invalid_argument("multiply: shapes do not agree");
        const int n = (int)x.shape(0), groups = columns_ / kGroup, threads = pool_->size();
        const size_t padded = (size_t)padded_rows(n) * groups;
        pool_->run([&](int thread) {
            const int first = blocks_ * thread / threads, last = blocks_ * (thread + 1) / threads;
            if (first == last) return;
            std::vector<int8_t> numbers(padded * kGroup);
            std::vector<float> scales(padded), scaled_sums(padded), values(holds_floats(kind_) ? padded * kGroup : 0);
            std::vector<int32_t> sums(padded), half_sums(format_of(kind_).part == kLanes ? padded : 0);
            const int own = std::min(rows_, last * kLanes) - first * kLanes;
            kernels_.matmul(describe(kind_, own, columns_, data_ + bytes_ * first), x.data(), n,
                            {numbers.data(), scales.data(), sums.data(), scaled_sums.data(), half_sums.empty() ? nullptr : half_sums.data(),
                             values.empty() ? nullptr : values.data(), groups, 1}, out.data() + (size_t)first * kLanes, out.shape(1));
        });
    }

  private:
    WeightType kind_;
    int rows_, columns_, blocks_;
    size_t bytes_;
    const uint8_t* data_;
    const Kernels& kernels_;
    std::shared_ptr<ThreadPool> pool_;
};

// The places of up to `count` tokens that come first by the logarithm of their weight plus noise, the foremost first; of equal ones the one
// that stands first. Noise is above 6.932 once in a thousand times: what is too unlikely to catch up otherwise is not computed.
std::vector<int> rank(Vector<double> weights, Vector<int64_t> ids, uint64_t key, int count) {
    if (weights.size() != ids.size()) throw std::invalid_argument("rank: there are as many weights as ids");
    std::vector<std::pair<double, int>> first;
    double least = 0.0;
    for (int i = 0; i < (int)weights.size(); i++) {
        const double weight = weights.data()[i];
        if (!(weight > 0.0)) continue;
        const uint64_t bits = noise_bits(key, ids.data()[i]);
        if (weight < least && bits >> 54 != 1023) continue;
        const double score = std::log(weight) + gumbel(bits);
        size_t at = first.size();
        while (at > 0 && score > first[at - 1].first) at--;
        if ((int)at == count) continue;
        first.insert(first.begin() + at, {score, i});
        if ((int)first.size() > count) first.pop_back();
        if ((int)first.size() == count) least = std::exp(first.back().first - 6.932);
    }
    std::vector<int> places;
    for (const auto& [score, place] : first) places.push_back(place);
    return places;
}

// GB/s of reading `bytes` of memory with the given number of threads: the best of `repeats`.
double measure_bandwidth(size_t bytes, int threads, int repeats) {
    const Kernels& kernels = choose_kernels("");
    std::vector<uint8_t> data(bytes, 1);
    std::vector<uint64_t> sums((size_t)threads * 8);
    ThreadPool pool(threads);
    double best = 1e30;
    for (int r = 0; r < repeats; r++) {
        const auto begin = std::chrono::steady_clock::now();
        pool.run([&](int t) {
            const size_t from = bytes * t / threads, to = bytes * (t + 1) / threads;
            sums[(size_t)t * 8] += kernels.read_memory(data.data() + from, to - from);
        });
        best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
    }
    if (!sums[0]) throw std::runtime_error("the memory read back as zero");
    return bytes / best / 1e9;
}

}  // namespace

NB_MODULE(_kernels, m) {
    nb::register_exception_translator(
        [](const std::exception_ptr& p, void*) {
            try {
                std::rethrow_exception(p);
            } catch (const CacheFull& e) {
                PyErr_SetString(nb::module_::import_("paceline.errors").attr("CapacityError").ptr(), e.what());
            }
        });

    m.def("available", &available_kernels);
    m.def("packed_bytes", [](const std::string& type, int rows, int columns) {
        return block_bytes(weight_type(type, columns), columns) * ((rows + kLanes - 1) / kLanes);
    });
    m.def("measure_bandwidth", &measure_bandwidth, nb::arg("bytes"), nb::arg("threads"), nb::arg("repeats"), nb::call_guard<nb::gil_scoped_release>());
    m.def(
        "draw",
        [](Vector<float> logits, double temperature, int top_k, double top_p, double min_p, uint64_t key, const std::string& isa) {
            thread_local std::vector<Candidate> room;
            if (room.size() < logits.size()) room.resize(logits.size());
            if (!logits.size()) throw std::invalid_argument("no logits");
            static const Kernels& best = choose_kernels("");
            const Kernels& kernels = isa.empty() ? best : choose_kernels(isa);
            return kernels.draw(logits.data(), (int)logits.size(), {temperature, top_p, min_p, top_k, key}, room.data());
        },
        nb::arg("logits"), nb::arg("temperature"), nb::arg("top_k"), nb::arg("top_p"), nb::arg("min_p"), nb::arg("key"), nb::arg("isa") = "");
    m.def("rank", &rank, nb::arg("weights"), nb::arg("ids"), nb::arg("key"), nb::arg("count"));
    nb::class_<Product>(m, "Product")
        .def(nb::init<const std::string&, int, int, Bytes, int, const std::string&>(), nb::arg("type"), nb::arg("rows"), nb::arg("columns"), nb::arg("packed"),
             nb::kw_only(), nb::arg("threads"), nb::arg("isa"), nb::keep_alive<1, 5>())
        .def("multiply", &Product::multiply, nb::arg("x"), nb::arg("out"));

    nb::class_<Source>(m, "Source").def("at", &Source::at).def("matches", [](const Source& source, const std::vector<int32_t>& ending, int64_t most) {
        if (ending.empty()) throw std::invalid_argument("a text that goes on has a last token");
        std::vector<std::pair<int, int32_t>> found;
        for (const Match& match : source.matches(ending, most)) found.push_back({match.agreed, match.place});
        return found;
    });
    nb::class_<Text, Source>(m, "Text")
        .def("__init__", [](Text* text, const std::vector<int32_t>& tokens) { (new (text) Text())->extend(tokens); }, nb::arg("tokens") = std::vector<int32_t>())
        .def("__len__", [](const Text& text) { return text.tokens().size(); })
        .def("extend", &Text::extend)
        .def_prop_ro("tokens", &Text::tokens);
    nb::class_<Index, Source>(m, "Index")
        .def("__init__",
             [](Index* index, Ints tokens, Ints order, Ints starts) {
                 new (index) Index(tokens.data(), (int64_t)tokens.size(), order.data(), (int64_t)order.size(), starts.data(), (int64_t)starts.size() - 1);
             },
             nb::arg("tokens"), nb::arg("order"), nb::arg("starts"), nb::keep_alive<1, 2>(), nb::keep_alive<1, 3>(), nb::keep_alive<1, 4>());
    nb::class_<Continuations>(m, "Continuations")
        .def(nb::init<std::vector<int32_t>>(), nb::arg("ending"))
        .def("look_in", &Continuations::look_in, nb::keep_alive<1, 2>())
        .def("add", &Continuations::add, nb::keep_alive<1, 2>())
        .def("first",
             [](const Continuations& found) {
                 nb::dict tokens;
                 for (const auto& [token, confidence] : found.first()) tokens[nb::int_(token)] = confidence;
                 return tokens;
             })
        .def("tree",
             [](const Continuations& found, int nodes, int depth, double min_probability, const std::vector<double>& scales) {
                 Grown grown = found.tree(nodes, depth, min_probability, scales);
                 return nb::make_tuple(std::move(grown.tokens), std::move(grown.parents), std::move(grown.confidences));
             },
             nb::arg("nodes"), nb::arg("depth"), nb::arg("min_probability"), nb::arg("scales") = std::vector<double>())
        .def_prop_ro("longest", &Continuations::longest);

    nb::class_<BoundModel>(m, "Model")
        .def(nb::init<nb::dict, nb::dict, const std::vector<int>&, Doubles, int, int, int, const std::string&>(), nb::arg("shape"), nb::arg("tensors"),
             nb::kw_only(), nb::arg("windows"), nb::arg("frequencies"), nb::arg("cache_pages"), nb::arg("max_positions"), nb::arg("threads"), nb::arg("isa"))
        .def("forward",
             [](BoundModel& b, Ints slots, Ints offsets, Ints starts, Ints tokens, Ints parents, Ints positions, Ints scored, StridedRows logits,
                const std::vector<int32_t>& tap_layers, const std::vector<Floats>& taps, const std::optional<Floats>& features, const std::optional<Floats>& pads) {
                 b.forward(slots, offsets, starts, tokens, parents, positions, scored, logits, tap_layers, taps, features, pads);
             },
             nb::arg("slots"), nb::arg("offsets"), nb::arg("starts"), nb::arg("tokens"), nb::arg("parents"), nb::arg("positions"), nb::arg("scored"),
             nb::arg("logits"), nb::arg("tap_layers"), nb::arg("taps"), nb::arg("features") = nb::none(), nb::arg("pads") = nb::none())
        .def("sketch", &BoundModel::sketch, nb::arg("slots"), nb::arg("offsets"), nb::arg("starts"), nb::arg("tokens"), nb::arg("parents"),
             nb::arg("positions"), nb::arg("scored"), nb::arg("logits"), nb::arg("skipped"), nb::arg("sinks"), nb::arg("recent"),
             nb::arg("tap_layers") = std::vector<int32_t>(), nb::arg("taps") = std::vector<Floats>())
        .def("commit", [](BoundModel& b, const std::vector<int>& known, const std::vector<std::vector<int>>& kept) { b.model().commit(known, kept); })
        .def("release", [](BoundModel& b, const std::vector<int>& slots) { b.model().release(slots); })
        .def("pages", [](BoundModel& b, int slot) { return b.model().pages(slot); })
        .def("adopt", [](BoundModel& b, int slot, const std::vector<int32_t>& pages) { b.model().adopt(slot, pages); })
        .def("hold", [](BoundModel& b, const std::vector<int32_t>& pages) { b.model().hold(pages); })
        .def("drop", [](BoundModel& b, const std::vector<int32_t>& pages) { b.model().drop(pages); })
        .def("length", [](BoundModel& b, int slot) { return b.model().length(slot); })
        .def("read_cache",
             [](BoundModel& b, int slot, int layer, Cube keys, Cube values) {
                 const size_t length = b.model().length(slot);
                 if (keys.shape(0) != length || values.shape(0) != length) throw std::invalid_argument("read_cache: wrong length");
                 b.model().read_cache(slot, layer, keys.data(), values.data());
             })
        .def("measure_stages", [](BoundModel& b, bool on) { b.model().stage_seconds.assign(on ? kStages : 0, 0.0); })
        .def_prop_ro("stage_seconds", &stage_seconds)
        .def_prop_ro("free_pages", [](BoundModel& b) { return b.model().free_pages(); })
        .def_prop_ro("threads", [](BoundModel& b) { return b.model().threads(); })
        .def_prop_ro("isa", [](BoundModel& b) { return std::string(b.model().kernels().name); });
}
