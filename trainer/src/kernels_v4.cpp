#define MI_NAMESPACE v4
#include "kernels.inc.hpp"
