#include "operators.h"

namespace ssm_export {

std::vector<Operator> const& operators() {
    static char const ours[] = "ssm_export";
    static std::vector<Operator> const all{
        {"CausalConv1d", ours, {1}, {"activation"}, {}},
        {"SelectiveScan", ours, {1}, {"dt_softplus"}, {}},
        {"SsdScan", ours, {1}, {"dt_softplus", "dt_min", "dt_max", "chunk_size"}, {}},
        {"ConvSsdScan", ours, {1}, {"activation", "dt_softplus", "dt_min", "dt_max"}, {}},
        {"LinearRecurrence", ours, {1}, {"chunk_size"}, {}},
        {"LtiScan", ours, {1}, {"chunk_size"}, {}},
        {"GatedDeltaRule", ours, {1}, {"scale", "chunk_size"}, {}},
        // ONNX opset 27. The parsers that know these ask for no namespace, and pass a null tensor
        // for an input that is left out before one that is there.
        {"LinearAttention", "", {1, 27},
         {"q_num_heads", "kv_num_heads", "update_rule", "scale", "chunk_size"},
         {"query", "key", "value", "past_state", "decay", "beta"}},
        {"CausalConvWithState", "", {1, 27}, {"ndim", "activation"},
         {"input", "weight", "bias", "past_state"}},
    };
    return all;
}

}  // namespace ssm_export
