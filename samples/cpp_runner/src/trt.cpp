#include "trt.h"

#include <NvInferRuntime.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <map>
#include <vector>

#include "choice.h"
#include "error.h"
#include "runtime_options.h"
#include "sha256.h"

namespace ssm_runner {
namespace {

constexpr char kPluginFile[] = "libssm_export_plugins.so";
constexpr char kPluginVariable[] = "SSM_EXPORT_PLUGIN_LIBRARY";

class Logger : public nvinfer1::ILogger {
public:
    void log(Severity severity, char const* message) noexcept override {
        if (severity <= Severity::kWARNING) {
            std::fprintf(stderr, "%s: %s\n", severity <= Severity::kERROR ? "error" : "warning",
                         message);
        }
    }
};

Type type_of(nvinfer1::DataType type) {
    switch (type) {
    case nvinfer1::DataType::kFLOAT: return Type::float32;
    case nvinfer1::DataType::kHALF: return Type::float16;
    case nvinfer1::DataType::kBF16: return Type::bfloat16;
    case nvinfer1::DataType::kINT8: return Type::int8;
    case nvinfer1::DataType::kINT32: return Type::int32;
    case nvinfer1::DataType::kINT64: return Type::int64;
    default: return Type::other;
    }
}

bool is_file(std::string const& path) {
    struct stat found {};
    return stat(path.c_str(), &found) == 0 && S_ISREG(found.st_mode);
}

class TrtEngine : public Engine {
public:
    TrtEngine(nvinfer1::ICudaEngine& engine, EngineEntry const& entry, int profile,
              CudaStream stream, std::string const& fix)
        : engine_(engine), entry_(entry), fix_(fix), context_(create_context(engine)) {
        if (context_ == nullptr) {
            refuse(
                "no execution context can be made of it, for lack of memory or for what stands "
                "above");
        }
        if (profile > 0 && !context_->setOptimizationProfileAsync(profile, stream)) {
            refuse(text("it has no optimization profile ", profile));
        }
    }

    void check_tensors(Manifest const& manifest) const {
        check(kIds, true, Type::int64);
        if (manifest.ragged) {
            check(kLengths, true, Type::int32);
        }
        for (State const& state : manifest.states) {
            check(state.name_in, true, state.type);
            check(state.name_out, false, state.type);
        }
        check(kLogits, false, type(kLogits));
        Type const logits = type(kLogits);
        if (logits != Type::float32 && logits != Type::float16 && logits != Type::bfloat16) {
            refuse(text("its logits are ", name_of(logits)));
        }
    }

    Type type(std::string const& tensor) const override {
        return type_of(engine_.getTensorDataType(tensor.c_str()));
    }

    std::vector<int64_t> shape(std::string const& output) const override {
        nvinfer1::Dims const found = context_->getTensorShape(output.c_str());
        return std::vector<int64_t>(found.d, found.d + (found.nbDims > 0 ? found.nbDims : 0));
    }

    void set_shape(std::string const& input, std::vector<int64_t> const& shape) override {
        nvinfer1::Dims wanted{};
        wanted.nbDims = static_cast<int32_t>(shape.size());
        for (size_t axis = 0; axis < shape.size(); ++axis) {
            wanted.d[axis] = shape[axis];
        }
        if (!context_->setInputShape(input.c_str(), wanted)) {
            refuse("it refuses a shape of '" + input + "'; TensorRT's message is above");
        }
    }

    void bind(std::string const& tensor, Address address) override {
        if (!context_->setTensorAddress(tensor.c_str(), reinterpret_cast<void*>(address))) {
            refuse("it refuses a buffer for '" + tensor + "'; TensorRT's message is above");
        }
    }

    bool capturable(CudaStream stream) const override { return can_capture(*context_, stream); }

    bool enqueue(CudaStream stream) override { return context_->enqueueV3(stream); }

private:
    [[noreturn]] void refuse(std::string const& what) const {
        throw Error(kEngineMismatch, what, entry_.file.path, fix_);
    }

    void check(std::string const& name, bool input, Type wanted) const {
        auto const mode = engine_.getTensorIOMode(name.c_str());
        if (mode != (input ? nvinfer1::TensorIOMode::kINPUT : nvinfer1::TensorIOMode::kOUTPUT)) {
            refuse(text("it has no ", input ? "input '" : "output '", name, "'"));
        }
        if (type(name) != wanted) {
            refuse(text("'", name, "' is ", name_of(type(name)), " in it, and ", name_of(wanted),
                        " in the manifest"));
        }
    }

    nvinfer1::ICudaEngine& engine_;
    EngineEntry const& entry_;
    std::string fix_;
    std::unique_ptr<nvinfer1::IExecutionContext> context_;
};

std::string other_library(EngineEntry const& entry, std::string const& library) {
    if (library.empty() || entry.plugin_library.empty() ||
        sha256_of(library) == entry.plugin_library) {
        return "";
    }
    return " (" + library + " is another plugin library than it was built with)";
}

}  // namespace

std::string runtime_kind() { return SSM_RUNNER_KIND; }

std::string runtime_version() {
    return text(getInferLibMajorVersion(), ".", getInferLibMinorVersion(), ".",
                getInferLibPatchVersion(), ".", getInferLibBuildVersion());
}

std::string header_version() {
    return text(NV_TENSORRT_MAJOR, ".", NV_TENSORRT_MINOR, ".", NV_TENSORRT_PATCH);
}

void check_headers() {
    if (getInferLibMajorVersion() != NV_TENSORRT_MAJOR) {
        throw Error(kWrongHeaders,
                    text("it was compiled with the headers of TensorRT ", header_version(),
                         ", and the library here is ", runtime_kind(), " ", runtime_version()),
                    "this program",
                    "compile it with the headers of that library (-DTENSORRT_ROOT), or say "
                    "--other-headers to run it nevertheless");
    }
}

std::string find_plugin_library(std::string const& given, std::string const& folder) {
    char const* const named = std::getenv(kPluginVariable);
    std::string const asked = !given.empty() ? given : named != nullptr ? named : "";
    if (!asked.empty()) {
        if (!is_file(asked)) {
            throw Error(kPluginLibrary, "there is no file " + asked,
                        given.empty() ? kPluginVariable : "--plugin-library",
                        text("give the path of ", kPluginFile, " itself"));
        }
        return asked;
    }
    char self[4096] = "";
    ssize_t const size = readlink("/proc/self/exe", self, sizeof self - 1);
    std::string const program(self, size > 0 ? static_cast<size_t>(size) : 0);
    for (std::string const& place :
         {program.substr(0, program.rfind('/')), folder + "/plugin", std::string("/usr/local/lib"),
          std::string("/usr/lib"), "/usr/lib/" + platform_here().substr(6) + "-linux-gnu"}) {
        if (is_file(place + "/" + kPluginFile)) {
            return place + "/" + kPluginFile;
        }
    }
    return "";
}

struct Runtime::Members {
    Logger logger;
    std::string plugin_library;
    std::unique_ptr<nvinfer1::IRuntime> runtime;
    std::map<std::string, std::unique_ptr<nvinfer1::ICudaEngine>> engines;
};

Runtime::Runtime() : members_(std::make_unique<Members>()) {
    members_->runtime.reset(nvinfer1::createInferRuntime(members_->logger));
    if (members_->runtime == nullptr) {
        throw Error(kRunnerFailed, runtime_kind() + " does not start; its message is above", "",
                    "ssm-export doctor shows the versions of the driver and of CUDA");
    }
}

Runtime::~Runtime() = default;

void Runtime::load_plugins(std::string const& path, EngineEntry const& entry) {
    if (path.empty()) {
        throw Error(kPluginLibrary,
                    text("its scans are plugins, and ", kPluginFile, " is not on this machine"),
                    entry.file.path,
                    text("build it (plugins/tensorrt/README.md has the command) and give it with "
                         "--plugin-library FILE or ",
                         kPluginVariable, "=FILE"));
    }
    members_->plugin_library = path;
    if (getPluginRegistry()->loadLibrary(path.c_str()) == nullptr) {
        throw Error(
            kPluginLibrary,
            text(runtime_kind(), " ", runtime_version(), " does not load it; its message is above"),
            path, "build it on this machine: plugins/tensorrt/README.md has the command");
    }
}

std::unique_ptr<Engine> Runtime::context(Manifest const& manifest, EngineEntry const& entry,
                                         int profile, CudaStream stream) {
    std::string const path = manifest.path(entry.file);
    std::string const fix = rebuild(entry, manifest.folder);
    auto& engine = members_->engines[path];
    if (engine == nullptr) {
        std::ifstream file(path, std::ios::binary);
        std::vector<char> bytes(static_cast<size_t>(entry.file.bytes));
        file.read(bytes.data(), entry.file.bytes);
        engine.reset(members_->runtime->deserializeCudaEngine(bytes.data(), bytes.size()));
        if (engine == nullptr) {
            throw Error(
                kEngineMismatch,
                text(runtime_kind(), " ", runtime_version(), " does not load it",
                     other_library(entry, members_->plugin_library), "; its message is above"),
                entry.file.path, fix);
        }
    }
    auto made = std::make_unique<TrtEngine>(*engine, entry, profile, stream, fix);
    made->check_tensors(manifest);
    return made;
}

}  // namespace ssm_runner
