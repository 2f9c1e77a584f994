#include "logger.h"

#include <dlfcn.h>

#include <atomic>
#include <cstdio>
#include <string>

namespace ssm_export {

namespace {

using nvinfer1::ILogger;

constexpr bool kOf11 = NV_TENSORRT_MAJOR >= 11;

std::atomic<nvinfer1::ILoggerFinder*> g_finder{nullptr};

// Loggers and their finders changed with TensorRT 11. Which of the two a finder is, by the library
// that its first function is in, else as in the headers.
bool is_of_11(nvinfer1::ILoggerFinder* finder) {
    Dl_info info{};
    std::string const file =
        dladdr(**reinterpret_cast<void***>(finder), &info) != 0 ? info.dli_fname : "";
    auto const has = [&](char const* part) { return file.find(part) != std::string::npos; };
    if (has("libnvinfer") && has(".so.1")) {
        return !has(".so.10");
    }
    return has("libtensorrt_rtx") || kOf11;
}

// The logger of the TensorRT that the process has loaded, where no finder was given.
ILogger* loaded_logger() {
    void* const library =
        dlopen(kOf11 ? "libnvinfer.so.11" : "libnvinfer.so.10", RTLD_LAZY | RTLD_NOLOAD);
    if (library == nullptr) {
        return nullptr;
    }
    auto const get = reinterpret_cast<ILogger* (*)()>(dlsym(library, "getLogger"));
    ILogger* const logger = get == nullptr ? nullptr : get();
    dlclose(library);
    return logger;
}

}  // namespace

void set_logger_finder(nvinfer1::ILoggerFinder* finder) {
    // One that these headers do not describe is never called: messages go to standard error.
    g_finder = finder != nullptr && is_of_11(finder) == kOf11 ? finder : nullptr;
}

void report(Severity severity, std::string const& message) noexcept {
    try {
        nvinfer1::ILoggerFinder* const finder = g_finder;
        ILogger* const logger = finder != nullptr ? finder->findLogger() : loaded_logger();
        if (logger != nullptr) {
            logger->log(severity, message.c_str());
        } else if (severity <= Severity::kWARNING) {
            std::fprintf(stderr, "%s\n", message.c_str());
        }
    } catch (...) {
        std::fprintf(stderr, "%s\n", message.c_str());
    }
}

}  // namespace ssm_export
