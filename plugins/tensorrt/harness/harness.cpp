#include "harness.h"

#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <string>
#include <vector>

namespace {

using namespace nvinfer1;

std::string g_log;
std::string g_given;
IPluginCreatorInterface* const* g_creators = nullptr;
int32_t g_count = 0;

class Logger final : public ILogger {
public:
    void log(Severity severity, char const* message) noexcept override {
        static char const* const names[] = {"internal", "error", "warning", "info", "verbose"};
        g_log += std::string(names[static_cast<int>(severity)]) + " " + message + "\n";
    }
} g_logger;

class Finder final : public ILoggerFinder {
public:
    ~Finder() = default;
    ILogger* findLogger() override { return &g_logger; }
} g_finder;

// A size as TensorRT's builder hands it out: a constant, or the axis of an input.
class Size final : public IDimensionExpr, private apiv::VDimensionExpr {
public:
    Size(int64_t value, std::string shown) : value_(value), shown_(std::move(shown)) {
        mImpl = this;
    }
    ~Size() noexcept override = default;
    std::string const& shown() const { return shown_; }

private:
    bool isConstant() const override { return value_ >= 0; }
    int64_t getConstantValue() const override { return value_; }
    bool isSizeTensor() const override { return false; }
    int64_t value_;
    std::string shown_;
};

class Sizes final : public IExprBuilder, private apiv::VExprBuilder {
public:
    Sizes() { mImpl = this; }
    ~Sizes() noexcept override = default;
    Size const* make(int64_t value, std::string shown) {
        return &made_.emplace_back(value, std::move(shown));
    }

private:
    IDimensionExpr const* constant(int64_t value) override {
        return make(value, std::to_string(value));
    }
    IDimensionExpr const* operation(
        DimensionOperation, IDimensionExpr const&, IDimensionExpr const&) override {
        return make(-1, "operation");
    }
    IDimensionExpr const* declareSizeTensor(
        int32_t, IDimensionExpr const&, IDimensionExpr const&) override {
        return make(-1, "size");
    }
    std::deque<Size> made_;
};

template <typename Capability>
Capability* as(void* plugin, PluginCapabilityType type) {
    return static_cast<Capability*>(
        static_cast<IPluginV3*>(plugin)->getCapabilityInterface(type));
}
IPluginV3OneBuild* build(void* plugin) {
    return as<IPluginV3OneBuild>(plugin, PluginCapabilityType::kBUILD);
}
IPluginV3OneRuntime* runtime(void* plugin) {
    return as<IPluginV3OneRuntime>(plugin, PluginCapabilityType::kRUNTIME);
}

Dims dims(int32_t rank, int64_t const* sizes) {
    Dims made{};
    made.nbDims = rank;
    std::copy_n(sizes, std::max(rank, 0), made.d);
    return made;
}

std::vector<PluginTensorDesc> described(HarnessTensor const* tensors, int32_t count) {
    std::vector<PluginTensorDesc> made;
    for (int32_t i = 0; i < count; ++i) {
        PluginTensorDesc one{};
        one.dims = dims(tensors[i].rank, tensors[i].shape);
        one.type = static_cast<DataType>(tensors[i].type);
        one.format = static_cast<TensorFormat>(tensors[i].format);
        one.scale = 1.0F;
        made.push_back(one);
    }
    return made;
}

std::vector<DynamicPluginTensorDesc> dynamic(HarnessTensor const* tensors, int32_t count) {
    std::vector<DynamicPluginTensorDesc> made;
    auto const fixed = described(tensors, count);
    for (int32_t i = 0; i < count; ++i) {
        DynamicPluginTensorDesc one{};
        one.desc = fixed[static_cast<size_t>(i)];
        one.min = dims(tensors[i].rank, tensors[i].min);
        one.max = one.opt = dims(tensors[i].rank, tensors[i].max);
        made.push_back(one);
    }
    return made;
}

}  // namespace

bool harness_open(char const* path) {
    void* const library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
        g_log += std::string("error ") + dlerror() + "\n";
        return false;
    }
    auto const finder =
        reinterpret_cast<void (*)(ILoggerFinder*)>(dlsym(library, "setLoggerFinder"));
    auto const creators = reinterpret_cast<IPluginCreatorInterface* const* (*)(int32_t&)>(
        dlsym(library, "getCreators"));
    if (finder == nullptr || creators == nullptr) {
        g_log += "error the library lacks setLoggerFinder or getCreators\n";
        return false;
    }
    finder(&g_finder);
    g_creators = creators(g_count);
    return true;
}

char const* harness_log() {
    g_given.swap(g_log);
    g_log.clear();
    return g_given.c_str();
}

char const* harness_creators() {
    static std::string text;
    text.clear();
    for (int32_t i = 0; i < g_count; ++i) {
        auto* const one = static_cast<IPluginCreatorV3One*>(g_creators[i]);
        text += std::string(one->getPluginName()) + " " + one->getPluginVersion() + " " +
                one->getPluginNamespace();
        auto const* const fields = one->getFieldNames();
        for (int32_t k = 0; k < fields->nbFields; ++k) {
            text += std::string(" ") + fields->fields[k].name;
        }
        text += "\n";
    }
    return text.c_str();
}

void* harness_create(char const* op, char const* op_namespace, char const* node,
                             HarnessField const* fields, int32_t count, int32_t phase) {
    std::vector<PluginField> given;
    for (int32_t i = 0; i < count; ++i) {
        given.emplace_back(fields[i].name, fields[i].data,
                           static_cast<PluginFieldType>(fields[i].type), fields[i].length);
    }
    PluginFieldCollection const collection{count, given.data()};
    for (int32_t i = 0; i < g_count; ++i) {
        auto* const one = static_cast<IPluginCreatorV3One*>(g_creators[i]);
        if (std::strcmp(one->getPluginName(), op) == 0 &&
            std::strcmp(one->getPluginNamespace(), op_namespace) == 0) {
            return one->createPlugin(node, &collection, static_cast<TensorRTPhase>(phase));
        }
    }
    g_log += std::string("error no creator ") + op_namespace + "::" + op + "\n";
    return nullptr;
}

void* harness_clone(void* plugin) { return static_cast<IPluginV3*>(plugin)->clone(); }
void* harness_attach(void* plugin) { return runtime(plugin)->attachToContext(nullptr); }
void harness_destroy(void* plugin) { delete static_cast<IPluginV3*>(plugin); }
int32_t harness_outputs(void* plugin) { return build(plugin)->getNbOutputs(); }

int32_t harness_output_types(
    void* plugin, int32_t const* in, int32_t inputs, int32_t* out, int32_t outputs) {
    static_assert(sizeof(DataType) == sizeof(int32_t));
    return build(plugin)->getOutputDataTypes(reinterpret_cast<DataType*>(out), outputs,
                                             reinterpret_cast<DataType const*>(in), inputs);
}

char const* harness_output_shapes(
    void* plugin, HarnessTensor const* in, int32_t inputs, int32_t outputs) {
    static std::string text;
    text.clear();
    Sizes sizes;
    std::vector<DimsExprs> given(static_cast<size_t>(inputs));
    std::vector<DimsExprs> made(static_cast<size_t>(outputs));
    for (int32_t i = 0; i < inputs; ++i) {
        DimsExprs& one = given[static_cast<size_t>(i)];
        one.nbDims = in[i].rank;
        for (int32_t axis = 0; axis < in[i].rank; ++axis) {
            int64_t const size = in[i].shape[axis];
            one.d[axis] = sizes.make(
                size, size < 0 ? std::to_string(i) + "." + std::to_string(axis)
                               : std::to_string(size));
        }
    }
    if (build(plugin)->getOutputShapes(
            given.data(), inputs, nullptr, 0, made.data(), outputs, sizes) != 0) {
        return nullptr;
    }
    for (DimsExprs const& one : made) {
        text += text.empty() ? "" : ", ";
        for (int32_t axis = 0; axis < one.nbDims; ++axis) {
            text += (axis == 0 ? "" : " ") + static_cast<Size const*>(one.d[axis])->shown();
        }
    }
    return text.c_str();
}

bool harness_supports(
    void* plugin, int32_t position, HarnessTensor const* all, int32_t inputs, int32_t outputs) {
    auto const given = dynamic(all, inputs + outputs);
    return build(plugin)->supportsFormatCombination(position, given.data(), inputs, outputs);
}

int32_t harness_configure(void* plugin, HarnessTensor const* in, int32_t inputs,
                                  HarnessTensor const* out, int32_t outputs) {
    return build(plugin)->configurePlugin(
        dynamic(in, inputs).data(), inputs, dynamic(out, outputs).data(), outputs);
}

size_t harness_workspace(void* plugin, HarnessTensor const* in, int32_t inputs,
                                 HarnessTensor const* out, int32_t outputs) {
    return build(plugin)->getWorkspaceSize(
        dynamic(in, inputs).data(), inputs, dynamic(out, outputs).data(), outputs);
}

int32_t harness_shapes(void* plugin, HarnessTensor const* in, int32_t inputs,
                               HarnessTensor const* out, int32_t outputs) {
    return runtime(plugin)->onShapeChange(
        described(in, inputs).data(), inputs, described(out, outputs).data(), outputs);
}

int32_t harness_enqueue(void* plugin, HarnessTensor const* in, int32_t inputs,
                                HarnessTensor const* out, int32_t outputs,
                                void const* const* read, void* const* written, void* workspace,
                                void* stream) {
    auto const given = described(in, inputs);
    auto const made = described(out, outputs);
    return runtime(plugin)->enqueue(given.data(), made.data(), read, written, workspace,
                                    static_cast<cudaStream_t>(stream));
}

int32_t harness_serialize(void* plugin, HarnessField* fields, int32_t room) {
    auto const* const stored = runtime(plugin)->getFieldsToSerialize();
    if (stored == nullptr) {
        return -1;
    }
    for (int32_t i = 0; i < stored->nbFields && i < room; ++i) {
        PluginField const& one = stored->fields[i];
        fields[i] = {one.name, one.data, static_cast<int32_t>(one.type), one.length};
    }
    return stored->nbFields;
}
