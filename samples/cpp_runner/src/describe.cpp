#include "describe.h"

#include "error.h"
#include "state_buffers.h"

namespace ssm_runner {
namespace {

std::string range(Range const& sizes) {
    return sizes.smallest == sizes.largest ? text(sizes.largest)
                                           : text(sizes.smallest, " to ", sizes.largest);
}

std::string engine_line(EngineEntry const& entry, char const* form, int64_t profile) {
    return text("  ", form, ": ", entry.file.path, ", ", entry.file.bytes, " bytes, ", entry.kind,
                " ", entry.version, ", compute capability ", entry.capability, ", batch ",
                range(entry.batch), profile == 0 ? "" : text(", tokens ", range(entry.time)), "\n");
}

}  // namespace

std::string describe(Manifest const& manifest, Choice const& choice, int64_t rows) {
    std::vector<int64_t> sizes;
    for (State const& state : manifest.states) {
        sizes.push_back(rows * state.bytes_per_row());
    }
    // Numbers in the place of addresses: the order in which they would be allocated.
    Address next = 0;
    StateBuffers const buffers(sizes, choice.unified(), [&](int64_t) { return next++; });
    std::string out = text("bundle ", manifest.folder, ": ", manifest.family, ", ",
                           manifest.precision, ", state ", manifest.state_type, ", ",
                           manifest.layers, " layers, vocabulary ", manifest.vocabulary, "\n");
    out += "engines:\n" + engine_line(*choice.step, "step", 0) +
           engine_line(*choice.prefill, "prefill", 1);
    if (!choice.step->plugin_library.empty()) {
        out += "  scans are plugins of libssm_export_plugins.so\n";
    }
    out += text("states: ", buffers.count(), ", ", manifest.state_bytes_per_row(),
                " bytes a row; for ", rows, rows == 1 ? " row " : " rows ", buffers.total_bytes(),
                " bytes in ", next, " buffers, ",
                choice.unified() ? "past and present in one" : "past and present alternate", "\n");
    for (size_t i = 0; i < buffers.count(); ++i) {
        State const& state = manifest.states[i];
        std::string shape = text(rows);
        for (int64_t const size : state.sizes) {
            shape += text(",", size);
        }
        out += text("  ", state.name_in, " -> ", state.name_out, "  ", name_of(state.type), " (",
                    shape, ")  ", buffers.bytes(i), " bytes, ");
        for (int turn = 0; turn < buffers.turns(); ++turn) {
            out += text(turn == 0 ? "buffer " : ", then ", buffers.past(i, turn), " -> ",
                        buffers.present(i, turn));
        }
        out += "\n";
    }
    out += text("CUDA graphs of a step: ", buffers.turns(), "\n");
    return out;
}

}  // namespace ssm_runner
