#include "options.h"

#include <cctype>
#include <cerrno>
#include <cstdlib>
#include <fstream>
#include <iterator>

#include "error.h"

namespace ssm_runner {

char const* const kUsage =
    "usage: ssm_runner BUNDLE [options]\n"
    "\n"
    "Runs the TensorRT engines of a bundle of ssm-export: prefill, then greedy decode.\n"
    "\n"
    "  --ids 1,2,3            the prompt as token ids\n"
    "  --ids-file FILE        the prompt as a text file of token ids\n"
    "  --tokens N             tokens to decode (32)\n"
    "  --batch N              rows, each with the same prompt (1)\n"
    "  --check                compare with the greedy tokens that PyTorch chose\n"
    "  --target NAME          the engines of this target, where the bundle has several\n"
    "  --no-cuda-graph        launch every step by itself\n"
    "  --plugin-library FILE  libssm_export_plugins.so, where the engine needs it\n"
    "  --other-headers        run though compiled with headers of another major release\n"
    "  --dry-run              print engines, states and buffers; needs no GPU\n"
    "  --version              print the versions of library and headers\n"
    "  --help                 print this\n"
    "\n"
    "Exit status: 0 done, 1 failed, 2 wrong usage, 3 this machine lacks something.\n";

namespace {

[[noreturn]] void wrong(std::string const& what) {
    throw Error(kWrongUsage, what, "", "ssm_runner --help");
}

// Whole numbers with commas or white space between them.
std::vector<int64_t> numbers(std::string const& words, std::string const& where) {
    std::vector<int64_t> out;
    for (char const* at = words.c_str(); *at != '\0';) {
        if (*at == ',' || std::isspace(static_cast<unsigned char>(*at)) != 0) {
            ++at;
            continue;
        }
        char* after = nullptr;
        errno = 0;
        out.push_back(std::strtoll(at, &after, 10));
        if (after == at || errno != 0) {
            wrong(text(where, ": '", std::string(at).substr(0, 20), "' is no token id"));
        }
        at = after;
    }
    if (out.empty()) {
        wrong(where + " has no token ids");
    }
    return out;
}

int64_t count_of(std::string const& option, std::string const& value) {
    static constexpr int64_t kMost = 1 << 30;
    char* after = nullptr;
    int64_t const out = std::strtoll(value.c_str(), &after, 10);
    if (value.empty() || *after != '\0' || out < 1 || out > kMost) {
        wrong(text(option, " wants a whole number from 1 on, not '", value, "'"));
    }
    return out;
}

}  // namespace

Options read_options(int count, char const* const* words) {
    Options out;
    for (int i = 1; i < count; ++i) {
        std::string const word = words[i];
        auto const value = [&]() -> std::string {
            if (i + 1 >= count) {
                wrong(word + " wants a value");
            }
            return words[++i];
        };
        if (word == "--help" || word == "-h") {
            out.help = true;
        } else if (word == "--version") {
            out.version = true;
        } else if (word == "--dry-run") {
            out.dry_run = true;
        } else if (word == "--check") {
            out.check = true;
        } else if (word == "--no-cuda-graph") {
            out.cuda_graph = false;
        } else if (word == "--other-headers") {
            out.other_headers = true;
        } else if (word == "--target") {
            out.target = value();
        } else if (word == "--plugin-library") {
            out.plugin_library = value();
        } else if (word == "--tokens") {
            out.tokens = count_of(word, value());
        } else if (word == "--batch") {
            out.batch = count_of(word, value());
        } else if (word == "--ids") {
            out.ids = numbers(value(), word);
        } else if (word == "--ids-file") {
            std::string const path = value();
            std::ifstream file(path, std::ios::binary);
            std::string const content{std::istreambuf_iterator<char>(file), {}};
            if (!file) {
                throw Error(kNoSuchPath, "there is no file '" + path + "'", word, "");
            }
            out.ids = numbers(content, path);
        } else if (word.size() > 1 && word[0] == '-') {
            wrong("there is no option " + word);
        } else if (!out.bundle.empty()) {
            wrong("one bundle at a time, not '" + out.bundle + "' and '" + word + "'");
        } else {
            out.bundle = word;
        }
    }
    if (out.help || out.version) {
        return out;
    }
    if (out.bundle.empty()) {
        wrong("no bundle is given");
    }
    if (!out.dry_run && !out.check && out.ids.empty()) {
        wrong("there is no prompt: --ids or --ids-file has one; or say --check or --dry-run");
    }
    return out;
}

}  // namespace ssm_runner
