#include "host.hpp"

#include "dispatch.hpp"
#include "parallel.hpp"

namespace nca {

const Host& host() {
    static const Host functions = {
        []() noexcept -> const Kernels* {
            try {
                return &active_kernels();
            } catch (...) {
                return nullptr;
            }
        },
        [](int threads) noexcept -> void* {
            try {
                return new Team(threads);
            } catch (...) {
                return nullptr;
            }
        },
        [](void* team) noexcept { return static_cast<Team*>(team)->size(); },
        [](void* team, void (*function)(const void*, int), const void* context, Watch& watch) noexcept {
            static_cast<Team*>(team)->run(function, context, watch);
        },
        [](void* team) noexcept { delete static_cast<Team*>(team); },
    };
    return functions;
}

} // namespace nca
