// What TensorRT-RTX has and TensorRT has not, found by asking the classes, so that one source
// compiles with the headers of both.
#pragma once

#include <memory>
#include <type_traits>
#include <utility>

namespace ssm_runner {

template <typename Config, typename = void>
struct HasSpecialization : std::false_type {};
template <typename Config>
struct HasSpecialization<
    Config,
    std::void_t<decltype(std::declval<Config&>().getDynamicShapesKernelSpecializationStrategy())>>
    : std::true_type {};

template <typename Engine, typename = void>
struct HasConfig : std::false_type {};
template <typename Engine>
struct HasConfig<Engine, std::void_t<decltype(std::declval<Engine&>().createRuntimeConfig())>>
    : HasSpecialization<
          std::remove_pointer_t<decltype(std::declval<Engine&>().createRuntimeConfig())>> {};

template <typename Context, typename Stream, typename = void>
struct HasCapturable : std::false_type {};
template <typename Context, typename Stream>
struct HasCapturable<
    Context, Stream,
    std::void_t<decltype(std::declval<Context&>().isStreamCapturable(std::declval<Stream>()))>>
    : std::true_type {};

// An execution context. TensorRT-RTX compiles kernels for the shapes at hand when they are first
// met: at once, and not beside the first runs, or a captured graph would keep the slower ones.
template <typename Engine>
auto create_context(Engine& engine) {
    if constexpr (HasConfig<Engine>::value) {
        auto const config =
            std::unique_ptr<std::remove_pointer_t<decltype(engine.createRuntimeConfig())>>(
                engine.createRuntimeConfig());
        if (config != nullptr) {
            using Strategy = decltype(config->getDynamicShapesKernelSpecializationStrategy());
            config->setDynamicShapesKernelSpecializationStrategy(Strategy::kEAGER);
            return engine.createExecutionContext(config.get());
        }
    }
    return engine.createExecutionContext();
}

// Whether a run can be captured; true where the runtime has no way to ask.
template <typename Context, typename Stream>
bool can_capture(Context const& context, Stream stream) {
    if constexpr (HasCapturable<Context const, Stream>::value) {
        return context.isStreamCapturable(stream);
    }
    return true;
}

}  // namespace ssm_runner
