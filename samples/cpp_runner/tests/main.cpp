// What tests/cpp_runner/ ask of the parts of the runner that need no TensorRT.
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iostream>
#include <iterator>

#include "cases.h"
#include "check.h"
#include "choice.h"
#include "error.h"
#include "json.h"
#include "latency.h"
#include "npz.h"
#include "sha256.h"

namespace ssm_runner {
namespace {

std::string hex(std::string const& bytes) {
    std::string out;
    char two[3];
    for (char const byte : bytes) {
        std::snprintf(two, sizeof two, "%02x", static_cast<unsigned char>(byte));
        out += two;
    }
    return out;
}

// A document in a form that leaves nothing open: strings and the bits of numbers in hexadecimal.
std::string canonical(Json const& json) {
    uint64_t bits = 0;
    std::memcpy(&bits, &json.real, sizeof bits);
    std::string out;
    switch (json.kind) {
    case Json::Kind::null: return "n";
    case Json::Kind::boolean: return json.boolean ? "t" : "f";
    case Json::Kind::integer: return text("i", json.integer);
    case Json::Kind::real: return text("d", std::hex, bits);
    case Json::Kind::string: return "s" + hex(json.string);
    case Json::Kind::array:
        for (Json const& one : json.items) {
            out += canonical(one) + ",";
        }
        return "[" + out + "]";
    default:
        for (Json::Member const& one : json.members) {
            out += hex(one.name) + ":" + canonical(one.value) + ",";
        }
        return "{" + out + "}";
    }
}

std::string read(char const* path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

// One document per line of hexadecimal digits.
void json_lines() {
    std::string line;
    while (std::getline(std::cin, line)) {
        std::string document;
        for (size_t i = 0; i + 1 < line.size(); i += 2) {
            document += static_cast<char>(std::stoi(line.substr(i, 2), nullptr, 16));
        }
        try {
            std::cout << canonical(Json::parse(document)) << "\n";
        } catch (JsonError const& error) {
            std::cout << "error: " << error.what() << "\n";
        }
    }
}

void lines(std::vector<std::string> const& all) {
    for (std::string const& one : all) {
        std::cout << one << "\n";
    }
}

int run(int count, char** words) {
    std::string const what = count > 1 ? words[1] : "";
    std::cout.precision(9);
    if (what == "json") {
        json_lines();
    } else if (what == "sha256") {
        std::cout << sha256_of(words[2]) << "\n";
    } else if (what == "npz") {
        Array const array = read_npz(words[2], words[3]);
        std::cout << name_of(array.type);
        for (int64_t const size : array.shape) {
            std::cout << " " << size;
        }
        std::cout << "\n" << hex(array.bytes) << "\n";
    } else if (what == "floats") {  // elements of a file
        std::string const bytes = read(words[3]);
        Type const type = type_named(words[2]);
        for (size_t i = 0; i < bytes.size() / static_cast<size_t>(bytes_of(type)); ++i) {
            std::cout << element(bytes.data(), type, static_cast<int64_t>(i)) << "\n";
        }
    } else if (what == "near_tie") {
        Manifest const manifest = read_manifest(words[2]);
        std::cout << near_tie(manifest, words[3], logits_rms(manifest)) << "\n";
    } else if (what == "quantile") {
        std::vector<double> times;
        for (int i = 3; i < count; ++i) {
            times.push_back(std::stod(words[i]));
        }
        std::cout << quantile(times, std::stod(words[2])) << "\n";
    } else if (what == "choose") {  // BUNDLE KIND VERSION PLATFORM CAPABILITY [TARGET]
        Manifest const manifest = read_manifest(words[2]);
        Machine machine{words[3], words[4], words[5], std::nullopt};
        if (int const capability = std::stoi(words[6]); capability > 0) {
            machine.capability = {capability / 10, capability % 10};
        }
        Choice const choice = choose_engines(manifest, machine, count > 7 ? words[7] : "");
        std::cout << choice.step->file.path << " " << choice.prefill->file.path << "\n";
    } else if (what == "decode") {
        std::cout << decode_every_way() << "\n";
    } else if (what == "history") {
        lines(history_of(words[2][0] == '1', words[3][0] == '1'));
    } else if (what == "failures") {
        lines(failures());
    } else if (what == "runtime_options") {
        lines(runtime_options());
    } else {
        return kExitUsage;
    }
    return 0;
}

}  // namespace
}  // namespace ssm_runner

int main(int count, char** words) {
    try {
        return ssm_runner::run(count, words);
    } catch (ssm_runner::Error const& error) {
        std::cerr << error.what() << "\n";
        return error.exit_status();
    } catch (std::exception const& error) {
        std::cerr << error.what() << "\n";
        return ssm_runner::kExitFailed;
    }
}
