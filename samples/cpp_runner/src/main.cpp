// Runs the TensorRT engines of a bundle of ssm-export: prefill, then greedy decode, with the times.
#include <algorithm>
#include <cstdio>
#include <exception>
#include <memory>
#include <utility>

#include "check.h"
#include "choice.h"
#include "cuda.h"
#include "decoder.h"
#include "describe.h"
#include "error.h"
#include "latency.h"
#include "manifest.h"
#include "options.h"
#include "trt.h"

namespace ssm_runner {
namespace {

void print(std::string const& line) { std::fputs(line.c_str(), stdout); }

std::string version_line() {
    return text("ssm_runner with ", runtime_kind(), " ", runtime_version(),
                ", compiled with the headers of ", header_version(), " for ", platform_here(),
                "\n");
}

// What the engines cannot take, before anything is loaded.
void check_request(Options const& options, Manifest const& manifest, Choice const& choice) {
    for (EngineEntry const* const entry : {choice.step, choice.prefill}) {
        int64_t const rows = options.check ? 1 : options.batch;
        if (rows < entry->batch.smallest || rows > entry->batch.largest) {
            throw Error(kWrongUsage,
                        text("the batch is ", rows, ", the engine takes ", entry->batch.smallest,
                             " to ", entry->batch.largest),
                        entry->file.path,
                        "ssm-export build BUNDLE --max-batch N builds a larger one");
        }
    }
    for (int64_t const id : options.ids) {
        if (id < 0 || id >= manifest.vocabulary) {
            throw Error(
                kWrongUsage,
                text("token id ", id, " is outside the vocabulary of ", manifest.vocabulary), "",
                "give ids of this bundle's tokenizer");
        }
    }
}

void check_engines(Manifest const& manifest, Choice const& choice) {
    check_file(manifest, choice.step->file, rebuild(*choice.step, manifest.folder));
    if (!choice.unified()) {
        check_file(manifest, choice.prefill->file, rebuild(*choice.prefill, manifest.folder));
    }
}

// Prefill and decode: the tokens of the first row, and the times.
void generate(Decoder& decoder, Options const& options) {
    std::vector<int64_t> prompt;
    for (int64_t row = 0; row < options.batch; ++row) {
        prompt.insert(prompt.end(), options.ids.begin(), options.ids.end());
    }
    decoder.warm_up(static_cast<int64_t>(options.ids.size()));
    Stopwatch watch;
    decoder.prefill(prompt);
    std::vector<int64_t> chosen = decoder.greedy();
    double const prefill_ms = watch.lap();
    std::vector<int64_t> tokens{chosen.front()};
    std::vector<double> times;
    for (int64_t i = 1; i < options.tokens; ++i) {
        decoder.step(chosen);
        chosen = decoder.greedy();
        times.push_back(watch.lap());
        tokens.push_back(chosen.front());
    }
    print("tokens:");
    for (int64_t const token : tokens) {
        print(text(" ", token));
    }
    print(text("\nprefill: ", options.ids.size(), " tokens, ", prefill_ms, " ms, ",
               1e3 * static_cast<double>(prompt.size()) / prefill_ms, " tokens/s\n"));
    print(decoder.has_graphs() ? text("CUDA graphs: ", decoder.states().turns(), "\n")
                               : text("CUDA graphs: none, ", decoder.no_graphs(), "\n"));
    if (times.empty()) {
        return;
    }
    double total = 0;
    for (double const time : times) {
        total += time;
    }
    print(text("first token: ", prefill_ms + times.front(), " ms (prefill and the first step)\n"));
    print(text("decode: ", times.size(), " steps, p50 ", quantile(times, 0.5), " ms, p90 ",
               quantile(times, 0.9), " ms, p99 ", quantile(times, 0.99), " ms, max ",
               *std::max_element(times.begin(), times.end()), " ms, ",
               1e3 * static_cast<double>(options.batch) * static_cast<double>(times.size()) / total,
               " tokens/s\n"));
}

void check(Decoder& decoder, Manifest const& manifest, Greedy const& greedy, double tie) {
    decoder.warm_up(static_cast<int64_t>(greedy.ids.size()));
    Agreement const found = compare_greedy(decoder, greedy, tie);
    print(text("check: ", found.compared - found.wrong, " of ", found.compared,
               " greedy tokens are PyTorch's, ", found.near_ties, " near ties not compared\n"));
    if (found.wrong > 0) {
        throw Error(
            kParityFailed, found.first, manifest.folder,
            "ssm-export verify BUNDLE --runner " + runtime_kind() + " says where it begins");
    }
    if (found.compared == 0) {
        throw Error(kParityFailed, "every margin is a near tie, so nothing was compared",
                    manifest.folder, "ssm-export verify BUNDLE --runner " + runtime_kind());
    }
}

int run(Options const& options) {
    Manifest const manifest = read_manifest(options.bundle);
    Machine machine{runtime_kind(), runtime_version(), platform_here(), std::nullopt};
    Choice choice = choose_engines(manifest, machine, options.target);
    check_request(options, manifest, choice);
    check_engines(manifest, choice);
    // Read before the engines are, which take longer.
    Greedy const greedy = options.check ? read_greedy(manifest) : Greedy{};
    double const tie = options.check ? near_tie(manifest, runtime_kind(), logits_rms(manifest)) : 0;
    if (options.dry_run) {
        print(describe(manifest, choice, options.batch));
        if (!choice.step->plugin_library.empty()) {
            std::string const library = find_plugin_library(options.plugin_library, options.bundle);
            print("plugin library: " + (library.empty() ? "not found" : library) + "\n");
        }
        return 0;
    }
    Device device(load_driver());
    machine.capability = device.capability();
    Choice const known = std::exchange(choice, choose_engines(manifest, machine, options.target));
    if (known.step != choice.step || known.prefill != choice.prefill) {
        check_request(options, manifest, choice);
        check_engines(manifest, choice);
    }
    if (!options.other_headers) {
        check_headers();
    }
    Runtime runtime;
    if (!choice.step->plugin_library.empty()) {
        runtime.load_plugins(find_plugin_library(options.plugin_library, options.bundle),
                             *choice.step);
    }
    auto const step = runtime.context(manifest, *choice.step, 0, device.stream());
    auto const prefill =
        runtime.context(manifest, *choice.prefill, choice.unified() ? 1 : 0, device.stream());
    print(text("device: ", device.name(), ", compute capability ", machine.capability->first, ".",
               machine.capability->second, ", ", machine.kind, " ", machine.version, "\n"));
    DecoderOptions wanted{1, choice.prefill->time.largest, choice.unified(), options.cuda_graph};
    if (options.check) {
        Decoder decoder(device, manifest, *prefill, *step, wanted);
        check(decoder, manifest, greedy, tie);
    }
    if (!options.ids.empty()) {
        wanted.rows = options.batch;
        Decoder decoder(device, manifest, *prefill, *step, wanted);
        generate(decoder, options);
    }
    return 0;
}

int guarded(int count, char const* const* words) {
    try {
        Options const options = read_options(count, words);
        if (options.help || options.version) {
            print(options.help ? kUsage : version_line());
            return 0;
        }
        return run(options);
    } catch (Error const& error) {
        std::fflush(stdout);
        std::fprintf(stderr, "%s\n", error.what());
        return error.exit_status();
    } catch (std::exception const& error) {
        std::fflush(stdout);
        std::fprintf(stderr, "SSM-E901  %s\n", error.what());
        return kExitFailed;
    }
}

}  // namespace
}  // namespace ssm_runner

int main(int count, char** words) { return ssm_runner::guarded(count, words); }
