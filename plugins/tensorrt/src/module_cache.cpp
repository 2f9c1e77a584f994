#include "module_cache.h"

#include <algorithm>
#include <array>
#include <map>
#include <mutex>
#include <set>
#include <tuple>

#include "text.h"

namespace ssm_export {
namespace {

constexpr int kMaxSharedMemoryPerBlockOptin = 97;  // CUdevice_attribute
constexpr int kCapabilityMajor = 75;
constexpr int kCapabilityMinor = 76;
constexpr int kMaxDynamicSharedMemory = 8;  // CUfunction_attribute
constexpr int kErrorLogBuffer = 5;          // CUjit_option
constexpr int kErrorLogBytes = 6;
constexpr int kUnraised = 48 * 1024;

struct Device {
    int capability = 0;
    int shared_memory = 0;
};

std::string dotted(int capability) { return text(capability / 10, ".", capability % 10); }

Device current_device(Driver const& cuda) {
    int device = 0;
    int major = 0;
    int minor = 0;
    Device found;
    cuda.check(cuda.current_device(&device), "the current GPU is unknown");
    cuda.check(cuda.device_attribute(&major, kCapabilityMajor, device), "the GPU's capability");
    cuda.check(cuda.device_attribute(&minor, kCapabilityMinor, device), "the GPU's capability");
    cuda.check(cuda.device_attribute(&found.shared_memory, kMaxSharedMemoryPerBlockOptin, device),
               "the GPU's shared memory");
    found.capability = 10 * major + minor;
    return found;
}

// The images that a GPU may take, best first: the exact cubin, one for the same generation, PTX.
std::vector<Image> usable(Section const& section, int index, int capability) {
    std::vector<Image> found;
    std::copy_if(section.images.begin(), section.images.end(), std::back_inserter(found),
                 [&](Image const& image) {
                     bool const same = image.capability / 10 == capability / 10;
                     return image.index == index && image.capability <= capability &&
                            (image.ptx || same);
                 });
    std::stable_sort(found.begin(), found.end(), [](Image const& a, Image const& b) {
        return std::tuple(a.ptx, -a.capability) < std::tuple(b.ptx, -b.capability);
    });
    return found;
}

[[noreturn]] void refuse(Section const& section, int index, int capability) {
    std::string compiled;
    for (Image const& image : section.images) {
        if (image.index == index) {
            compiled += text(compiled.empty() ? "" : ", ", dotted(image.capability),
                             image.ptx ? " (PTX)" : " (cubin)");
        }
    }
    fail("its kernels were compiled for compute capability ", compiled, ", this GPU has ",
         dotted(capability), ": export and build for this GPU's target");
}

class Loader {
public:
    Loader(Driver const& cuda, Section const& section)
        : cuda_(cuda), section_(section), device_(current_device(cuda)),
          raw_(section.image_bytes()) {}

    void load(LoadedKernels& into) {
        std::set<int> indexes;
        for (Image const& image : section_.images) {
            indexes.insert(image.index);
        }
        into.functions.resize(static_cast<size_t>(*indexes.rbegin()) + 1);
        for (int const index : indexes) {
            into.functions[static_cast<size_t>(index)] = load_one(index, into);
        }
    }

private:
    Function load_one(int index, LoadedKernels& into) {
        auto const choices = usable(section_, index, device_.capability);
        for (Image const& image : choices) {
            CudaModule module = nullptr;
            std::array<char, 2048> log{};
            CudaResult const result = module_of(image, &module, log);
            bool const unfit = result == kNoBinaryForGpu || result == kInvalidImage ||
                               result == kInvalidPtx || result == kUnsupportedPtx;
            if (unfit && &image != &choices.back()) {
                continue;
            }
            std::string const about =
                text("kernel '", image.entry, "' (", image.ptx ? "PTX" : "cubin",
                     " for compute capability ", dotted(image.capability), ", this GPU has ",
                     dotted(device_.capability), ")");
            cuda_.check(result, text(about, " cannot be loaded", log[0] == '\0' ? "" : " [",
                                     log.data(), log[0] == '\0' ? "" : "]"));
            if (!shared_) {
                into.modules.push_back(module);
            }
            return function_of(image, module, about);
        }
        refuse(section_, index, device_.capability);
    }

    CudaResult module_of(Image const& image, CudaModule* module, std::array<char, 2048>& log) {
        auto const key = std::tuple(image.offset, image.bytes);
        auto const found = modules_.find(key);
        shared_ = found != modules_.end();
        if (shared_) {
            *module = found->second;
            return 0;
        }
        std::string const bytes = raw_.substr(image.offset, image.bytes);
        int keys[] = {kErrorLogBuffer, kErrorLogBytes};
        void* values[] = {log.data(), reinterpret_cast<void*>(log.size() - 1)};
        CudaResult const result = cuda_.load_module(module, bytes.c_str(), 2, keys, values);
        if (result == 0) {
            modules_.emplace(key, *module);
        }
        return result;
    }

    Function function_of(Image const& image, CudaModule module, std::string const& about) {
        Function made;
        made.threads = static_cast<unsigned>(image.threads);
        made.shared_memory = static_cast<unsigned>(image.shared_memory);
        made.extra_pointers = image.extra_pointers;
        if (image.shared_memory > device_.shared_memory) {
            fail(about, " needs ", image.shared_memory,
                 " bytes of shared memory, a block of this GPU has ", device_.shared_memory);
        }
        cuda_.check(cuda_.function(&made.handle, module, image.entry.c_str()),
                    text(about, " is not in its image"));
        if (image.shared_memory > kUnraised) {
            cuda_.check(cuda_.set_function_attribute(made.handle, kMaxDynamicSharedMemory,
                                                     image.shared_memory),
                        text(about, " cannot have ", image.shared_memory,
                             " bytes of shared memory"));
        }
        if (cuda_.load_function != nullptr) {
            // Otherwise a lazily loading driver would do it at the first launch, maybe in a capture.
            cuda_.check(cuda_.load_function(made.handle), text(about, " cannot be loaded"));
        }
        return made;
    }

    Driver const& cuda_;
    Section const& section_;
    Device device_;
    std::string raw_;
    std::map<std::tuple<size_t, size_t>, CudaModule> modules_;
    bool shared_ = false;
};

}  // namespace

LoadedKernels::~LoadedKernels() {
    if (modules.empty()) {
        return;
    }
    // The context, or the whole driver, may be gone already; then so are the modules.
    Driver const& cuda = driver();
    if (cuda.push_context(context) != 0) {
        return;
    }
    for (CudaModule const module : modules) {
        cuda.unload_module(module);
    }
    CudaContext popped = nullptr;
    cuda.pop_context(&popped);
}

std::shared_ptr<LoadedKernels const> load_kernels(std::shared_ptr<Section const> const& section) {
    using Key = std::tuple<CudaContext, unsigned long long, uint64_t>;
    static std::mutex mutex;
    static std::map<Key, std::weak_ptr<LoadedKernels const>> loaded;

    Driver const& cuda = driver();
    CudaContext context = nullptr;
    cuda.check(cuda.current_context(&context), "the current CUDA context is unknown");
    if (context == nullptr) {
        fail("this thread has no current CUDA context");
    }
    unsigned long long identity = 0;  // a new context may have the address of one that is gone
    if (cuda.context_id != nullptr) {
        cuda.check(cuda.context_id(context, &identity), "the current CUDA context is unknown");
    }
    std::lock_guard<std::mutex> const lock(mutex);
    auto& entry = loaded[Key(context, identity, section->hash)];
    if (auto const kernels = entry.lock();
        kernels != nullptr && kernels->section->bytes == section->bytes) {
        return kernels;
    }
    RelaxedCapture const relaxed(cuda);
    auto const made = std::make_shared<LoadedKernels>();
    made->section = section;
    made->context = context;
    Loader(cuda, *section).load(*made);
    entry = made;
    return made;
}

}  // namespace ssm_export
