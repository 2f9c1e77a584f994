// Loads the library where it was built for another machine, as under an emulator:
//   ssm_export_probe LIBRARY [KERNELS OP NAMESPACE SHAPE…]
// prints the creators, and the output shapes that the kernels in a file give to inputs of the given
// shapes, such as `-1,-1,24`. Exits with 1 and the log where something fails.
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "harness.h"

namespace {

constexpr int32_t kChar = 6;  // PluginFieldType::kCHAR

int failed(char const* what) {
    std::printf("%s\n%s", what, harness_log());
    return 1;
}

HarnessTensor tensor_of(char const* shape) {
    HarnessTensor made{};
    for (char const* at = shape; *at != '\0' && made.rank < 8;) {
        char* stop = nullptr;
        made.shape[made.rank++] = std::strtoll(at, &stop, 10);
        at = *stop == ',' ? stop + 1 : stop;
        if (stop == at && *at != '\0') {
            break;
        }
    }
    return made;
}

}  // namespace

int main(int count, char** arguments) {
    if (count < 2 || !harness_open(arguments[1])) {
        return failed("the library cannot be loaded");
    }
    std::printf("%s", harness_creators());
    if (count < 6) {
        return 0;
    }
    std::ifstream file(arguments[2], std::ios::binary);
    std::string const kernels((std::istreambuf_iterator<char>(file)), {});
    HarnessField const field{"kernels", kernels.data(), kChar, static_cast<int32_t>(kernels.size())};
    void* const plugin = harness_create(arguments[3], arguments[4], "probe", &field, 1, 0);
    if (plugin == nullptr) {
        return failed("the plugin cannot be created");
    }
    std::vector<HarnessTensor> inputs;
    for (int i = 5; i < count; ++i) {
        inputs.push_back(tensor_of(arguments[i]));
    }
    char const* const shapes = harness_output_shapes(
        plugin, inputs.data(), static_cast<int32_t>(inputs.size()), harness_outputs(plugin));
    if (shapes == nullptr) {
        return failed("the output shapes are not known");
    }
    std::printf("outputs: %s\n", shapes);
    harness_destroy(plugin);
    return 0;
}
