// The command line.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace ssm_runner {

struct Options {
    bool help = false;
    bool version = false;
    bool dry_run = false;
    bool check = false;
    bool cuda_graph = true;
    bool other_headers = false;
    std::string bundle;
    std::string target;
    std::string plugin_library;
    std::vector<int64_t> ids;
    int64_t tokens = 32;
    int64_t batch = 1;
};

extern char const* const kUsage;

// Throws Error, with exit status 2, for what the command line cannot mean.
Options read_options(int count, char const* const* words);

}  // namespace ssm_runner
