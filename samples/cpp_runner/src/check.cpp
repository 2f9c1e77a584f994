#include "check.h"

#include <algorithm>
#include <cmath>

#include "error.h"
#include "npz.h"

namespace ssm_runner {
namespace {

ParityEntry const& parity_of(Manifest const& manifest, std::string const& kind) {
    for (ParityEntry const& entry : manifest.parity) {
        if (entry.kind == kind) {
            return entry;
        }
    }
    throw Error(kMissingFile, text("the bundle has no recorded case '", kind, "'"), manifest.folder,
                "export again");
}

// Σ(y−r)²/Σr² that one operator may have, by the coarser of precision and type of the state.
double operator_error(Manifest const& manifest) {
    auto const of = [](std::string const& name) {
        return name == "fp32" ? 1e-10 : name == "fp16" ? 2e-7 : name == "bf16" ? 1e-5 : 2e-4;
    };
    return std::max(of(manifest.precision), of(manifest.state_type));
}

}  // namespace

Greedy read_greedy(Manifest const& manifest) {
    FileEntry const& file = parity_of(manifest, "generate").file;
    check_file(manifest, file, "export again");
    std::string const path = manifest.path(file);
    Greedy out;
    out.ids = read_npz(path, "input_ids").as_int64();
    out.tokens = read_npz(path, "tokens").as_int64();
    Array const margins = read_npz(path, "margin");
    for (int64_t i = 0; i < margins.count(); ++i) {
        out.margins.push_back(margins.value(i));
    }
    auto const outside = [&](int64_t id) { return id < 0 || id >= manifest.vocabulary; };
    if (out.margins.size() != out.tokens.size() || out.ids.empty() || out.tokens.empty() ||
        std::any_of(out.ids.begin(), out.ids.end(), outside) ||
        std::any_of(out.tokens.begin(), out.tokens.end(), outside)) {
        throw Error(kNotABundle, "its arrays do not belong together", path, "export again");
    }
    return out;
}

double near_tie(Manifest const& manifest, std::string const& runner, double rms) {
    static constexpr double kSigmas = 6, kMargin = 2;
    double const gate =
        kSigmas * std::sqrt(operator_error(manifest) * static_cast<double>(1 + manifest.layers));
    auto found = manifest.rounding.find("prefill " + runner);
    if (found == manifest.rounding.end()) {
        found = manifest.rounding.find("prefill");
    }
    double const floor = found == manifest.rounding.end() ? 0 : found->second;
    return std::max(2 * gate * rms, 2 * kMargin * floor * rms);
}

double logits_rms(Manifest const& manifest) {
    FileEntry const& file = parity_of(manifest, "prefill").file;
    check_file(manifest, file, "export again");
    Array const logits = read_npz(manifest.path(file), "logits");
    double squares = 0;
    for (int64_t i = 0; i < logits.count(); ++i) {
        squares += static_cast<double>(logits.value(i)) * static_cast<double>(logits.value(i));
    }
    return std::sqrt(squares / static_cast<double>(std::max<int64_t>(logits.count(), 1)));
}

Agreement compare_greedy(Decoder& decoder, Greedy const& greedy, double near_tie) {
    Agreement out;
    decoder.reset();
    decoder.prefill(greedy.ids);
    for (size_t i = 0; i < greedy.tokens.size(); ++i) {
        int64_t const chosen = decoder.greedy().front();
        if (!(static_cast<double>(greedy.margins[i]) >= near_tie)) {
            ++out.near_ties;
        } else {
            ++out.compared;
            if (chosen != greedy.tokens[i] && out.wrong++ == 0) {
                out.first =
                    text("token ", i, " is ", chosen, ", expected ", greedy.tokens[i], " (margin ",
                         greedy.margins[i], ", a near tie is below ", near_tie, ")");
            }
        }
        if (i + 1 < greedy.tokens.size()) {
            decoder.step({greedy.tokens[i]});
        }
    }
    return out;
}

}  // namespace ssm_runner
